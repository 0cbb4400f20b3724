// y = x W' for one panel of weights that are whole numbers with scales: the shared body of the
// vector tiers. quantisation.h says what the numbers mean. To be included after the tier's
// vector-inl.h.
//
// Two policies make a kernel. A Dot says which instruction multiplies, and so how x is prepared
// and how many inputs a step has; Weights<Dot> says how a step of weights is stored, into how many
// parts with scales of their own a group is cut, and what a sum is worth. A panel is a row of
// groups, each its scales and [steps] weights; only the last group may have fewer steps. x is rows
// of whole_rows-inl.h.
//
// A tile is kTileRows rows of x by the two vectors of a step. Both its int32 sums, of the part at
// hand, and its float32 sums, of all groups, stay in registers:
//    8 lanes, 16 registers: 3 rows,  6 + 6 sums + 2 of W + 1 of x + 1 product.
//   16 lanes, 32 registers: 6 rows, 12 + 12 sums + 2 of W + 1 of x.
// With more than one part, the sums of the parts that are through take the place of those of all
// groups, which wait in memory: one load and one store beside 16 dot products.
// 12 chains of dot products keep two pipes busy for more than their latency of 4 or 5 cycles, and
// 8 loads a step fit beside them.
//
// Groups are cut into equal blocks of about 24 KiB of the panel at most, which stay in the L1 cache
// with the rows that pass over them; a block's sum starts from zero and is added to y. Every
// row takes the same course whatever the tile's height. One row alone has two chains, which wait
// for their latency: 32 bytes a cycle at 16 lanes, still several times what memory delivers.
//
// While the first tile of a block runs, it fetches ahead into the L2 cache: the same block of the
// next panel, or, where one tile is all there is and the panel is read once from end to end,
// kAheadBytes, a microsecond at a thread's share of memory's rate, so that little of a task's first
// panel comes unannounced. Scales are fetched like weights: of int4 they are every fifth line, and
// a line that nobody announced costs more than the others together.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/kernel_table.h"
#include "kernels/quantise-inl.h"
#include "kernels/tiles-inl.h"
#include "kernels/whole_rows-inl.h"

namespace slimformer::kernels {
namespace {
namespace whole {

constexpr std::size_t kTileRows = Vector::kLanes == 8 ? 3 : 6;
constexpr std::size_t kBlockBytes = std::size_t{24} << 10;

constexpr std::size_t kAheadBytes = std::size_t{16} << 10;

template <class Weights>
constexpr std::size_t kGroupSteps = Weights::Dot::kGroup / Weights::Dot::kPerStep;
template <class Weights>
constexpr std::size_t kGroupBytes =
    Weights::kScaleBytes + kGroupSteps<Weights> * Weights::kStepBytes;

// A number that is part of a type.
template <std::size_t kValue>
struct Index {
  static constexpr std::size_t value = kValue;
};

// What one call of Multiply works on.
template <class Weights>
struct Product {
  Rows<typename Weights::Dot> x;
  const std::byte* panel;
  std::size_t ahead;  // bytes to what is fetched
  float* y;           // [rows, kPanelWidth]
  std::size_t y_stride;
};

// dots [kRows][2] = steps [first, last) of a group of the panel times the same of every row.
template <class Weights, std::size_t kRows, bool kFetchNext>
[[gnu::always_inline]] inline void DotSteps(const Rows<typename Weights::Dot>& x,
                                            const std::byte* weights, std::size_t first,
                                            std::size_t last, std::size_t ahead,
                                            typename Weights::Dot::I (&dots)[kRows][2]) noexcept {
  using Dot = typename Weights::Dot;
  using I = typename Dot::I;
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    dots[r][0] = dots[r][1] = Weights::Start(x.FactsOf(r));
  }
#pragma GCC unroll 4
  for (std::size_t i = first; i < last; ++i) {
    const std::byte* step = weights + i * Weights::kStepBytes;
    if constexpr (kFetchNext) {
      for (std::size_t line = 0; line < Weights::kStepBytes; line += 64) {
        Vector::Prefetch(step + line + ahead);
      }
    }
    I low;
    I high;
    Weights::Load(step, low, high);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const I values = x.Step(r, i);
      dots[r][0] = Dot::MulAdd(values, low, dots[r][0]);
      dots[r][1] = Dot::MulAdd(values, high, dots[r][1]);
    }
  }
}

// Adds a group of the panel times the same group of every row to sums.
template <class Weights, std::size_t kRows, bool kFetchNext>
[[gnu::always_inline]] inline void AddGroup(const Product<Weights>& p, std::size_t group,
                                            std::size_t steps,
                                            Vector::F (&sums)[kRows][2]) noexcept {
  using I = typename Weights::Dot::I;
  constexpr std::size_t kOfPart = kGroupSteps<Weights> / Weights::kParts;
  const std::byte* scales = p.panel + group * kGroupBytes<Weights>;
  const std::byte* weights = scales + Weights::kScaleBytes;
  const Rows<typename Weights::Dot> x = p.x.From(group);
  if constexpr (kFetchNext) {
    for (std::size_t line = 0; line < Weights::kScaleBytes; line += 64) {
      Vector::Prefetch(scales + line + p.ahead);
    }
  }
  Vector::F scaled[kRows][2];  // of the parts so far; the scales alone might overflow a product
  const auto add_part = [&](auto part) [[gnu::always_inline]] {
    constexpr std::size_t kPart = decltype(part)::value;
    const std::size_t end = kPart + 1 == Weights::kParts ? steps : (kPart + 1) * kOfPart;
    I dots[kRows][2];
    DotSteps<Weights, kRows, kFetchNext>(x, weights, kPart * kOfPart, end < steps ? end : steps,
                                         p.ahead, dots);
    Vector::F scale[2];
    Weights::template LoadScales<kPart>(scales, scale);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (std::size_t half = 0; half < 2; ++half) {
        const Vector::F dot = Vector::ToFloat(dots[r][half]);
        scaled[r][half] = kPart == 0 ? Vector::Mul(dot, scale[half])
                                     : Vector::MulAdd(dot, scale[half], scaled[r][half]);
      }
    }
  };
  add_part(Index<0>{});
  if constexpr (Weights::kParts == 2) add_part(Index<1>{});
  const typename Weights::Minima minima(scales);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    const typename Weights::Dot::Facts& facts = x.FactsOf(r);
    const Vector::F x_scale = Vector::Set(facts.scale);
    sums[r][0] = Vector::MulAdd(scaled[r][0], x_scale, sums[r][0]);
    sums[r][1] = Vector::MulAdd(scaled[r][1], x_scale, sums[r][1]);
    minima.Add(facts, sums[r]);
  }
}

// Steps of the last group.
template <class Weights>
constexpr std::size_t LastSteps(std::size_t k) noexcept {
  using Dot = typename Weights::Dot;
  return DivideUp(k - (Groups<Dot>(k) - 1) * Dot::kGroup, Dot::kPerStep);
}

// y [kRows, kPanelWidth] (+)= the sums over adjoining groups, the last of them `last_steps` long.
template <class Weights, std::size_t kRows, bool kFetchNext>
inline void Tile(const Product<Weights>& p, std::size_t groups, std::size_t last_steps,
                 bool accumulate) noexcept {
  constexpr std::size_t kSteps = kGroupSteps<Weights>;
  Vector::F sums[kRows][2];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector::Zero();
  if constexpr (!kFetchNext) FetchResults<kRows>(p.y, p.y_stride);
  const std::size_t full = last_steps == kSteps ? groups : groups - 1;
  for (std::size_t group = 0; group < full; ++group) {
    AddGroup<Weights, kRows, kFetchNext>(p, group, kSteps, sums);
  }
  if (full < groups) AddGroup<Weights, kRows, kFetchNext>(p, full, last_steps, sums);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      float* to = p.y + r * p.y_stride + half * Vector::kLanes;
      Vector::F sum = sums[r][half];
      if (accumulate) sum = Vector::Add(Vector::Load(to), sum);
      Vector::Store(to, sum);
    }
  }
}

// Groups of one of the equal blocks that `groups` are cut into; the last may have fewer.
template <class Weights>
constexpr std::size_t BlockGroups(std::size_t groups) noexcept {
  return DivideUp(groups, DivideUp(groups, kBlockBytes / kGroupBytes<Weights>));
}

// y [rows, kPanelWidth] (+)= x panel over all of k.
template <class Weights>
inline void Blocks(Product<Weights> p, std::size_t rows, std::size_t k, bool accumulate) noexcept {
  std::size_t groups = Groups<typename Weights::Dot>(k);
  const std::size_t block = BlockGroups<Weights>(groups);
  while (groups > 0) {
    const bool is_last = groups <= block;
    const std::size_t n = is_last ? groups : block;
    const std::size_t last_steps = is_last ? LastSteps<Weights>(k) : kGroupSteps<Weights>;
    ForTiles<kTileRows>(rows, [&](auto tile, std::size_t first) {
      constexpr std::size_t kRows = decltype(tile)::kRows;
      Product<Weights> at = p;
      at.x = p.x.Below(first);
      at.y += first * p.y_stride;
      if (first == 0) {
        Tile<Weights, kRows, true>(at, n, last_steps, accumulate);
      } else {
        Tile<Weights, kRows, false>(at, n, last_steps, accumulate);
      }
    });
    accumulate = true;
    p.x = p.x.From(n);
    p.panel += n * kGroupBytes<Weights>;
    groups -= n;
  }
}

template <class Weights>
std::size_t PanelBytes(std::size_t k) noexcept {
  const std::size_t whole = (Groups<typename Weights::Dot>(k) - 1) * kGroupBytes<Weights>;
  return RoundUp(whole + Weights::kScaleBytes + LastSteps<Weights>(k) * Weights::kStepBytes, 64);
}

template <class Weights>
void Multiply(const void* x, std::size_t, std::size_t rows, const void* panel, std::size_t k,
              float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const Product<Weights> p{.x = Rows<typename Weights::Dot>(x, k),
                           .panel = static_cast<const std::byte*>(panel),
                           .ahead = rows <= kTileRows ? kAheadBytes : PanelBytes<Weights>(k),
                           .y = y,
                           .y_stride = y_stride};
  if (outputs == kPanelWidth) {
    Blocks(p, rows, k, accumulate);
    return;
  }
  ThroughCopy<4 * kTileRows>(y, y_stride, rows, outputs, accumulate,
                             [&](std::size_t first, std::size_t height, float* copy) {
                               Product<Weights> at = p;
                               at.x = p.x.Below(first);
                               at.y = copy;
                               at.y_stride = kPanelWidth;
                               Blocks(at, height, k, accumulate);
                             });
}

template <class Weights>
void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  using Dot = typename Weights::Dot;
  constexpr std::size_t kGroup = Dot::kGroup;
  __builtin_memset(panel, 0,
                   PanelBytes<Weights>(k));  // outputs that are not there have scales of 0
  for (std::size_t output = 0; output < outputs; ++output) {
    auto* scales = static_cast<std::uint8_t*>(panel);
    for (std::size_t i = 0; i < k; i += kGroup, scales += kGroupBytes<Weights>) {
      const std::size_t n = k - i < kGroup ? k - i : kGroup;
      float group[kGroup];
      __builtin_memcpy(group, w + output * stride + i, n * sizeof(float));
      if (Dot::kRotated) Rotate(n, 1.0F / kRotatedBlock, group);
      std::int16_t q[kGroup];
      Weights::Quantise(group, n, output, scales, q);
      std::uint8_t* steps = scales + Weights::kScaleBytes;
      for (std::size_t j = 0; j < RoundUp(n, Dot::kPerStep); ++j) {
        Weights::Put(steps + j / Dot::kPerStep * Weights::kStepBytes, output, j % Dot::kPerStep,
                     q[j]);
      }
    }
  }
}

template <class Weights>
void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  using Dot = typename Weights::Dot;
  constexpr std::size_t kGroup = Dot::kGroup;
  const auto* scales = static_cast<const std::uint8_t*>(panel);
  for (std::size_t i = 0; i < k; i += kGroup, scales += kGroupBytes<Weights>) {
    const std::uint8_t* steps = scales + Weights::kScaleBytes;
    const std::size_t n = k - i < kGroup ? k - i : kGroup;
    for (std::size_t j = 0; j < n; ++j) {
      const std::uint8_t* step = steps + j / Dot::kPerStep * Weights::kStepBytes;
      w[i + j] = Weights::Value(scales, output, j, Weights::Get(step, output, j % Dot::kPerStep));
    }
    if (Dot::kRotated) Rotate(n, 1.0F, w + i);
  }
}

template <class Weights>
constexpr GemmKernel MakeGemm() noexcept {
  using Dot = typename Weights::Dot;
  return {.panel_width = kPanelWidth,
          .tile_rows = kTileRows,
          .panel_bytes = &PanelBytes<Weights>,
          .pack_panel = &PackPanel<Weights>,
          .unpack_row = &UnpackRow<Weights>,
          .input_row_bytes = &InputRowBytes<Dot>,
          .input_unit = Dot::kGroup,
          .prepare_input = &PrepareInput<Dot>,
          .multiply = &Multiply<Weights>};
}

}  // namespace whole
}  // namespace
}  // namespace slimformer::kernels
