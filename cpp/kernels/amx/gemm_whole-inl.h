// y = x W' for one panel of weights that are whole numbers with scales, by tiles: bit for bit what
// gemm-whole-inl.h gives, whose panels, rows and order of sums these are. To be included after the
// tier's vector-inl.h.
//
// A group, or a part of one that has scales of its own, is one product of tiles. So its sums, whole
// numbers, leave the tiles at once, and vectors scale them: for 16 sums a conversion and two
// multiplications, where the product itself takes one cycle. A tile's product took 37 cycles with
// its loads and 78 with what follows (one thread, all in the first-level cache). The products of a
// group are started before those of the last one are scaled, and run meanwhile.
//
// Weights are widened to signed bytes once for all rows, a block of groups at a time: 22 KiB. A
// few rows are done by vectors in less time than that takes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/tiles-inl.h"
#include "kernels/avx512/vector-inl.h"
#include "kernels/gemm-whole-inl.h"

namespace slimformer::kernels {
namespace {
namespace amx {

constexpr std::size_t kGroupDepth = 64;  // bytes of a group of a row, and rows of 4 bytes
constexpr std::size_t kGroupTiles = kGroupDepth / 4 * 2 * kTileBytes;

// Signed bytes [kGroupDepth / 4][2 * kTileColumns][4] of a group. What lies `ahead` bytes behind it
// is fetched.
template <class Weights>
inline void WidenGroup(const std::byte* steps, std::size_t n_steps, std::size_t ahead,
                       std::byte* to) noexcept {
  for (std::size_t i = 0; i < kGroupDepth / 4; ++i, to += 2 * kTileBytes) {
    __m512i halves[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    if (i < n_steps) {
      for (std::size_t line = 0; line < Weights::kStepBytes; line += 64) {
        Vector::Prefetch(steps + i * Weights::kStepBytes + line + ahead);
      }
      Weights::Load(steps + i * Weights::kStepBytes, halves[0], halves[1]);
      if constexpr (Weights::kParts == 1) {  // int8, stored with an offset
        const __m512i offset = _mm512_set1_epi8(-128);
        halves[0] = _mm512_xor_si512(halves[0], offset);
        halves[1] = _mm512_xor_si512(halves[1], offset);
      }
    }
    _mm512_store_si512(to, halves[0]);
    _mm512_store_si512(to + kTileBytes, halves[1]);
  }
}

// What a group of kTileHeight rows by kTileColumns outputs comes to before it is scaled.
template <class Weights>
using GroupSums = std::int32_t[Weights::kParts][kTileHeight][kTileColumns];

// The tiles of every other group.
template <std::size_t kParity>
struct GroupTiles {
  static constexpr TileName kSums[2] = {kParity == 0 ? kSum00 : kSum10,
                                        kParity == 0 ? kSum01 : kSum11};
  static constexpr TileName kRows = kParity == 0 ? kRows0 : kRows1;
  static constexpr TileName kColumns = kParity == 0 ? kColumns0 : kColumns1;

  // Sums of a part: rows, `stride` bytes apart, times columns.
  template <std::size_t kPart>
  [[gnu::always_inline]] static void Multiply(const std::byte* rows, std::size_t stride,
                                              const std::byte* columns) noexcept {
    LoadTile<kColumns>(columns, 2 * kTileBytes);
    LoadTile<kRows>(rows, stride);
    ZeroTile<kSums[kPart]>();
    MulAddInt8<kSums[kPart], kRows, kColumns>();
  }
};

template <class Weights, std::size_t kParity>
[[gnu::always_inline]] inline void MultiplyGroup(const typename Weights::Dot::Input* x,
                                                 std::size_t x_stride,
                                                 const std::byte* columns) noexcept {
  constexpr std::size_t kDepth = kGroupDepth / Weights::kParts;
  const auto* rows = reinterpret_cast<const std::byte*>(x->steps);
  const std::size_t stride = x_stride * sizeof(*x);
  GroupTiles<kParity>::template Multiply<0>(rows, stride, columns);
  if constexpr (Weights::kParts == 2) {
    GroupTiles<kParity>::template Multiply<1>(rows + kDepth, stride,
                                              columns + kDepth / 4 * 2 * kTileBytes);
  }
}

template <class Weights, std::size_t kParity>
[[gnu::always_inline]] inline void StoreGroup(GroupSums<Weights>& sums) noexcept {
  StoreTile<GroupTiles<kParity>::kSums[0]>(sums[0], kTileBytes);
  if constexpr (Weights::kParts == 2) {
    StoreTile<GroupTiles<kParity>::kSums[1]>(sums[1], kTileBytes);
  }
}

// total [kTileHeight] += the sums of a group for the outputs of a half panel, scaled.
template <class Weights, std::size_t kHalf>
[[gnu::always_inline]] inline void AddScaled(const typename Weights::Dot::Input* x,
                                             std::size_t x_stride, const std::byte* scales,
                                             const GroupSums<Weights>& sums,
                                             Vector::F (&total)[kTileHeight]) noexcept {
  Vector::F scale[2][2];
  Weights::template LoadScales<0>(scales, scale[0]);
  if constexpr (Weights::kParts == 2) Weights::template LoadScales<1>(scales, scale[1]);
  [[maybe_unused]] const typename Weights::Minima minima(scales);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileHeight; ++r) {
    const typename Weights::Dot::Input& row = x[r * x_stride];
    Vector::F scaled = Vector::Mul(Vector::ToFloat(_mm512_load_si512(sums[0][r])), scale[0][kHalf]);
    if constexpr (Weights::kParts == 2) {
      scaled =
          Vector::MulAdd(Vector::ToFloat(_mm512_load_si512(sums[1][r])), scale[1][kHalf], scaled);
    }
    total[r] = Vector::MulAdd(scaled, Vector::Set(row.scale), total[r]);
    if constexpr (Weights::kParts == 2) {
      total[r] = (kHalf == 0 ? minima.low : minima.high).AddTo(total[r], row.sums);
    }
  }
}

// The same of a group whose sums have left their tiles; then those of the next group but one, which
// are made meanwhile, take their place. `groups` are left, this one included.
template <class Weights, std::size_t kHalf, std::size_t kParity>
[[gnu::always_inline]] inline void AddGroup(const typename Weights::Dot::Input* x,
                                            std::size_t x_stride, const std::byte* scales,
                                            const std::byte* columns, std::size_t groups,
                                            GroupSums<Weights>& sums,
                                            Vector::F (&total)[kTileHeight]) noexcept {
  if (groups > 2) MultiplyGroup<Weights, kParity>(x + 2, x_stride, columns + 2 * kGroupTiles);
  AddScaled<Weights, kHalf>(x, x_stride, scales, sums, total);
  if (groups > 2) StoreGroup<Weights, kParity>(sums);
}

// y [kTileHeight, kTileColumns] (+)= a block of groups times as many rows, for a half panel.
template <class Weights, std::size_t kHalf>
inline void MultiplyBlock(const typename Weights::Dot::Input* x, std::size_t x_stride,
                          const std::byte* panel, const std::byte* columns, std::size_t groups,
                          float* y, std::size_t y_stride, bool accumulate) noexcept {
  columns += kHalf * kTileBytes;
  alignas(64) GroupSums<Weights> sums[2];
  Vector::F total[kTileHeight];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileHeight; ++r) total[r] = Vector::Zero();

  MultiplyGroup<Weights, 0>(x, x_stride, columns);
  StoreGroup<Weights, 0>(sums[0]);
  if (groups > 1) {
    MultiplyGroup<Weights, 1>(x + 1, x_stride, columns + kGroupTiles);
    StoreGroup<Weights, 1>(sums[1]);
  }
  for (std::size_t group = 0; group < groups; group += 2) {
    AddGroup<Weights, kHalf, 0>(x, x_stride, panel, columns, groups - group, sums[0], total);
    if (group + 1 == groups) break;
    AddGroup<Weights, kHalf, 1>(x + 1, x_stride, panel + whole::kGroupBytes<Weights>,
                                columns + kGroupTiles, groups - group - 1, sums[1], total);
    x += 2;
    panel += 2 * whole::kGroupBytes<Weights>;
    columns += 2 * kGroupTiles;
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileHeight; ++r) {
    float* to = y + r * y_stride + kHalf * kTileColumns;
    Vector::Store(to, accumulate ? Vector::Add(Vector::Load(to), total[r]) : total[r]);
  }
}

// y [rows, kPanelWidth] (+)= x panel over all of k, for whole tiles of rows. Everything by value: a
// copy of a product whose fields have just been changed waits for all stores before it.
template <class Weights>
inline void MultiplyBlocks(const whole::Product<Weights>& p, std::size_t rows, std::size_t k,
                           bool accumulate) noexcept {
  constexpr std::size_t kMostGroups = whole::kBlockBytes / whole::kGroupBytes<Weights>;
  alignas(64) std::byte columns[kMostGroups * kGroupTiles];
  const std::size_t groups = whole::Groups<typename Weights::Dot>(k);
  const std::size_t block = whole::BlockGroups<Weights>(groups);
  const TileScope tiles(kMostRows, kGroupDepth / Weights::kParts);
  for (std::size_t first = 0; first < groups; first += block) {
    const std::size_t n = groups - first < block ? groups - first : block;
    const std::byte* panel = p.panel + first * whole::kGroupBytes<Weights>;
    for (std::size_t g = 0; g < n; ++g) {
      const bool is_last = first + g + 1 == groups;
      WidenGroup<Weights>(panel + g * whole::kGroupBytes<Weights> + Weights::kScaleBytes,
                          is_last ? whole::LastSteps<Weights>(k) : whole::kGroupSteps<Weights>,
                          p.ahead, columns + g * kGroupTiles);
    }
    for (std::size_t row = 0; row < rows; row += kTileHeight) {
      const typename Weights::Dot::Input* x = p.x + row * p.x_stride + first;
      float* y = p.y + row * p.y_stride;
      const bool add = accumulate || first > 0;
      MultiplyBlock<Weights, 0>(x, p.x_stride, panel, columns, n, y, p.y_stride, add);
      MultiplyBlock<Weights, 1>(x, p.x_stride, panel, columns, n, y, p.y_stride, add);
    }
  }
}

template <class Weights>
void MultiplyWhole(const void* x, std::size_t x_stride, std::size_t rows, const void* panel,
                   std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                   bool accumulate) noexcept {
  const std::size_t in_tiles = rows / kTileHeight * kTileHeight;
  whole::Product<Weights> p;
  p.x = static_cast<const typename Weights::Dot::Input*>(x);
  p.x_stride = whole::Groups<typename Weights::Dot>(k);
  p.panel = static_cast<const std::byte*>(panel);
  p.ahead = whole::PanelBytes<Weights>(k);
  p.y = y;
  p.y_stride = y_stride;
  if (in_tiles < rows) {
    whole::Multiply<Weights>(p.x + in_tiles * p.x_stride, x_stride, rows - in_tiles, panel, k,
                             y + in_tiles * y_stride, y_stride, outputs, accumulate);
  }
  if (in_tiles == 0) return;
  if (outputs == kPanelWidth) {
    MultiplyBlocks(p, in_tiles, k, accumulate);
    return;
  }
  ThroughCopy<4 * kMostRows>(y, y_stride, in_tiles, outputs, accumulate,
                             [&](std::size_t first, std::size_t height, float* copy) {
                               whole::Product<Weights> at = p;
                               at.x += first * p.x_stride;
                               at.y = copy;
                               at.y_stride = kPanelWidth;
                               MultiplyBlocks(at, height, k, accumulate);
                             });
}

template <class Weights>
constexpr GemmKernel MakeWholeGemm() noexcept {
  GemmKernel kernel = whole::MakeGemm<Weights>();
  kernel.tile_rows = kMostRows;
  kernel.multiply = &MultiplyWhole<Weights>;
  return kernel;
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
