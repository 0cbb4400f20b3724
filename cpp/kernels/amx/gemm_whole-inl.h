// y = x W' for one panel of weights that are whole numbers with scales, by tiles: bit for bit what
// gemm-whole-inl.h gives, whose panels, rows and order of sums these are. To be included after the
// tier's vector-inl.h.
//
// The sums of a group, or of a part of one that has scales of its own, are whole numbers. They
// leave their tile to be scaled by vectors, which takes as long as three products of tiles, for
// loads of these and of the sums contend. So a group of int8 is three products deep. With one, a
// product took 85 cycles (one thread, all in the first-level cache), with three 42. The products of
// a group are started before those of the last one are scaled, and run meanwhile.
//
// Weights are widened to signed bytes once for all rows, a block of groups at a time: 18 KiB. A
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

constexpr std::size_t kStepsOfTile = kTileBytes / 4;  // of columns, in four bytes of k each

// Bytes of a panel's steps, widened.
constexpr std::size_t WidenedBytes(std::size_t steps) noexcept { return steps * 2 * kTileBytes; }

template <class Weights>
constexpr std::size_t kGroupTiles = WidenedBytes(Weights::Dot::kGroup / 4);

// How many products of tiles sum up `steps` steps of a group.
constexpr std::size_t Depth(std::size_t steps) noexcept { return DivideUp(steps, kStepsOfTile); }

// Signed bytes [steps][2 * kTileColumns][4] of a group, filled up to whole tiles. What lies `ahead`
// bytes behind it is fetched.
template <class Weights>
inline void WidenGroup(const std::byte* group, std::size_t steps, std::size_t ahead,
                       std::byte* to) noexcept {
  const std::byte* step = group + Weights::kScaleBytes;
  for (std::size_t i = 0; i < steps; ++i, step += Weights::kStepBytes, to += 2 * kTileBytes) {
    for (std::size_t line = 0; line < Weights::kStepBytes; line += 64) {
      Vector::Prefetch(step + line + ahead);
    }
    __m512i halves[2];
    Weights::Load(step, halves[0], halves[1]);
    if constexpr (Weights::kParts == 1) {  // int8, stored with an offset
      const __m512i offset = _mm512_set1_epi8(-128);
      halves[0] = _mm512_xor_si512(halves[0], offset);
      halves[1] = _mm512_xor_si512(halves[1], offset);
    }
    _mm512_store_si512(to, halves[0]);
    _mm512_store_si512(to + kTileBytes, halves[1]);
  }
  __builtin_memset(to, 0, WidenedBytes(Depth(steps) * kStepsOfTile - steps));
}

template <class Weights>
using RowsOf = whole::Rows<typename Weights::Dot>;

// What a group of kTileHeight rows by kTileColumns outputs comes to before it is scaled.
template <class Weights>
using GroupSums = std::int32_t[Weights::kParts][kTileHeight][kTileColumns];

// The tiles that hold the sums of every other group.
template <std::size_t kParity>
constexpr TileName kSumTiles[2] = {kParity == 0 ? kSum00 : kSum10, kParity == 0 ? kSum01 : kSum11};

// kSum += rows, `stride` bytes apart, times columns. Loads of one product take the tiles that the
// last one did not.
template <TileName kSum, std::size_t kTurn>
[[gnu::always_inline]] inline void AddProduct(const std::byte* rows, std::size_t stride,
                                              const std::byte* columns) noexcept {
  constexpr TileName kRows = kTurn % 2 == 0 ? kRows0 : kRows1;
  constexpr TileName kColumns = kTurn % 2 == 0 ? kColumns0 : kColumns1;
  LoadTile<kColumns>(columns, 2 * kTileBytes);
  LoadTile<kRows>(rows, stride);
  MulAddInt8<kSum, kRows, kColumns>();
}

// The sums of a group that is `depth` products deep.
template <class Weights, std::size_t kParity>
[[gnu::always_inline]] inline void MultiplyGroup(const RowsOf<Weights>& x, const std::byte* columns,
                                                 std::size_t depth) noexcept {
  constexpr TileName kFirst = kSumTiles<kParity>[0];
  ZeroTile<kFirst>();
  AddProduct<kFirst, kParity>(x.numbers, x.stride, columns);
  if constexpr (Weights::kParts == 2) {
    constexpr TileName kSecond = kSumTiles<kParity>[1];
    constexpr std::size_t kPart = Weights::Dot::kGroup / 2;
    ZeroTile<kSecond>();
    AddProduct<kSecond, kParity + 1>(x.numbers + kPart, x.stride,
                                     columns + WidenedBytes(kPart / 4));
  } else {
    static_assert(Weights::Dot::kGroup == 3 * kTileBytes);
    constexpr std::size_t kNext = WidenedBytes(kStepsOfTile);
    if (depth > 1) {
      AddProduct<kFirst, kParity + 1>(x.numbers + kTileBytes, x.stride, columns + kNext);
    }
    if (depth > 2) {
      AddProduct<kFirst, kParity>(x.numbers + 2 * kTileBytes, x.stride, columns + 2 * kNext);
    }
  }
}

template <class Weights, std::size_t kParity>
[[gnu::always_inline]] inline void StoreGroup(GroupSums<Weights>& sums) noexcept {
  StoreTile<kSumTiles<kParity>[0]>(sums[0], kTileBytes);
  if constexpr (Weights::kParts == 2) StoreTile<kSumTiles<kParity>[1]>(sums[1], kTileBytes);
}

// What whole numbers come to at the scales of a group: bit for bit their conversion to float32
// times the scale. Beside tiles a core does one operation on float32 vectors a cycle instead of
// two, and one on integers. So one of these makes floats of 2^23 * 1.5 + sum, and a multiply-add
// takes that off again: 2^23 * 1.5 times a scale, which has 8 bits, is exact.
class Scales {
 public:
  explicit Scales(Vector::F scale) noexcept
      : scale_(scale), offset_(Vector::Mul(scale, Vector::Set(-kWhole))) {}
  Vector::F Of(const std::int32_t* sums) const noexcept {
    const __m512i bits = _mm512_set1_epi32(__builtin_bit_cast(std::int32_t, kWhole));
    const __m512i floats = _mm512_add_epi32(_mm512_load_si512(sums), bits);
    return Vector::MulAdd(_mm512_castsi512_ps(floats), scale_, offset_);
  }

 private:
  static constexpr float kWhole = 0x1.8p23F;  // sums are below 2^22
  Vector::F scale_;
  Vector::F offset_;
};

// total [kTileHeight] += the sums of a group for the outputs of a half panel, scaled.
template <class Weights, std::size_t kHalf>
[[gnu::always_inline]] inline void AddScaled(const RowsOf<Weights>& x, const std::byte* scales,
                                             const GroupSums<Weights>& sums,
                                             Vector::F (&total)[kTileHeight]) noexcept {
  Vector::F scale[2][2];
  Weights::template LoadScales<0>(scales, scale[0]);
  if constexpr (Weights::kParts == 2) Weights::template LoadScales<1>(scales, scale[1]);
  const Scales first(scale[0][kHalf]);
  [[maybe_unused]] const typename Weights::Minima minima(scales);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileHeight; ++r) {
    const typename Weights::Dot::Facts& facts = x.FactsOf(r);
    Vector::F scaled = first.Of(sums[0][r]);
    if constexpr (Weights::kParts == 2) {
      scaled =
          Vector::MulAdd(Vector::ToFloat(_mm512_load_si512(sums[1][r])), scale[1][kHalf], scaled);
    }
    total[r] = Vector::MulAdd(scaled, Vector::Set(facts.scale), total[r]);
    if constexpr (Weights::kParts == 2) {
      total[r] = (kHalf == 0 ? minima.low : minima.high).AddTo(total[r], facts.sums);
    }
  }
}

// Groups of a panel, widened, and the same of kTileHeight rows.
template <class Weights>
struct Block {
  RowsOf<Weights> x;
  const std::byte* panel;
  const std::byte* columns;  // of a half panel
  std::size_t groups;
  std::size_t last_depth;

  template <std::size_t kParity>
  [[gnu::always_inline]] void Multiply(std::size_t group) const noexcept {
    constexpr std::size_t kDepth = Depth(whole::kGroupSteps<Weights>);
    MultiplyGroup<Weights, kParity>(x.From(group), columns + group * kGroupTiles<Weights>,
                                    group + 1 == groups ? last_depth : kDepth);
  }
};

// Adds a group whose sums have left their tiles; then those of the next group but one, which are
// made meanwhile, take their place.
template <class Weights, std::size_t kHalf, std::size_t kParity>
[[gnu::always_inline]] inline void AddGroup(const Block<Weights>& block, std::size_t group,
                                            GroupSums<Weights>& sums,
                                            Vector::F (&total)[kTileHeight]) noexcept {
  const bool more = group + 2 < block.groups;
  if (more) block.template Multiply<kParity>(group + 2);
  AddScaled<Weights, kHalf>(block.x.From(group), block.panel + group * whole::kGroupBytes<Weights>,
                            sums, total);
  if (more) StoreGroup<Weights, kParity>(sums);
}

// y [kTileHeight, kTileColumns] (+)= a block, for a half panel.
template <class Weights, std::size_t kHalf>
inline void MultiplyBlock(Block<Weights> block, float* y, std::size_t y_stride,
                          bool accumulate) noexcept {
  block.columns += kHalf * kTileBytes;
  alignas(64) GroupSums<Weights> sums[2];
  Vector::F total[kTileHeight];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileHeight; ++r) total[r] = Vector::Zero();

  block.template Multiply<0>(0);
  StoreGroup<Weights, 0>(sums[0]);
  if (block.groups > 1) {
    block.template Multiply<1>(1);
    StoreGroup<Weights, 1>(sums[1]);
  }
  for (std::size_t group = 0; group < block.groups; group += 2) {
    AddGroup<Weights, kHalf, 0>(block, group, sums[0], total);
    if (group + 1 == block.groups) break;
    AddGroup<Weights, kHalf, 1>(block, group + 1, sums[1], total);
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
  alignas(64) std::byte columns[kMostGroups * kGroupTiles<Weights>];
  const std::size_t groups = whole::Groups<typename Weights::Dot>(k);
  const std::size_t of_block = whole::BlockGroups<Weights>(groups);
  const TileScope tiles(kMostRows, kTileBytes / Weights::kParts);
  for (std::size_t first = 0; first < groups; first += of_block) {
    const std::size_t n = groups - first < of_block ? groups - first : of_block;
    const std::byte* panel = p.panel + first * whole::kGroupBytes<Weights>;
    const std::size_t last_steps =
        first + n == groups ? whole::LastSteps<Weights>(k) : whole::kGroupSteps<Weights>;
    for (std::size_t g = 0; g < n; ++g) {
      WidenGroup<Weights>(panel + g * whole::kGroupBytes<Weights>,
                          g + 1 == n ? last_steps : whole::kGroupSteps<Weights>, p.ahead,
                          columns + g * kGroupTiles<Weights>);
    }
    const bool add = accumulate || first > 0;
    for (std::size_t row = 0; row < rows; row += kTileHeight) {
      const Block<Weights> block{p.x.Below(row).From(first), panel, columns, n, Depth(last_steps)};
      float* y = p.y + row * p.y_stride;
      MultiplyBlock<Weights, 0>(block, y, p.y_stride, add);
      MultiplyBlock<Weights, 1>(block, y, p.y_stride, add);
    }
  }
}

template <class Weights>
void MultiplyWhole(const void* x, std::size_t x_stride, std::size_t rows, const void* panel,
                   std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                   bool accumulate) noexcept {
  const std::size_t in_tiles = rows / kTileHeight * kTileHeight;
  const whole::Product<Weights> p{.x = RowsOf<Weights>(x, k),
                                  .panel = static_cast<const std::byte*>(panel),
                                  .ahead = whole::PanelBytes<Weights>(k),
                                  .y = y,
                                  .y_stride = y_stride};
  if (in_tiles < rows) {
    whole::Multiply<Weights>(p.x.Below(in_tiles).numbers, x_stride, rows - in_tiles, panel, k,
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
                               at.x = p.x.Below(first);
                               at.y = copy;
                               at.y_stride = kPanelWidth;
                               MultiplyBlocks(at, height, k, accumulate);
                             });
}

template <class Weights>
constexpr GemmKernel MakeWholeGemm() noexcept {
  GemmKernel kernel = whole::MakeGemm<Weights>();
  kernel.tile_rows = kTileHeight;
  kernel.multiply = &MultiplyWhole<Weights>;
  return kernel;
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
