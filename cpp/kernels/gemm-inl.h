// y = x W' for one panel of W: the shared body of the vector tiers' matrix products. To be
// included after the tier's vector-inl.h, once a tier file.
//
// A panel is [steps][2 * kLanes]: a step is what one multiply-add consumes of k, one value or, for
// bfloat16 dot products, two. The register tile is kTileRows rows of x by the two vectors of a
// step; a step loads two vectors of W, broadcasts kTileRows values of x and issues 2 * kTileRows
// multiply-adds:
//    8 lanes, 16 registers:  6 rows, 12 accumulators + 2 of W + 1 of x.
//   16 lanes, 32 registers: 12 rows, 24 accumulators + 2 of W + 1 of x.
// With 6 rows the 12 multiply-adds keep two pipes busy for 6 cycles, more than their latency of 4;
// the 8 loads need 4 of those cycles.
//
// k is cut into equal blocks of at most kBlockSteps: a block of the panel (20 KiB of float32 at 8
// lanes) and six rows of x (8 KiB) fit the L1 cache while all rows pass over it; at 16 lanes the
// panel comes from the L2 cache, which has to give 128 of the 768 bytes it could in the 24 cycles
// of a step. A block's sum starts from zero and is then added to y, so rounding grows with the
// block and the number of blocks, not with k, and y, which may be large, is rounded once a block.
// Its lines are fetched when a tile begins, since by then they have left the L2 cache.
//
// Every sum of a row takes the same course whatever the tile's height. Low tiles would starve:
// fewer than 8 chains of multiply-adds wait for their own latency. They run several blocks of k
// side by side instead, which adds up in the same order.
//
// While a block's tiles run, the same block of the next panel is fetched into the L2 cache. A
// single tile, with which a panel is used once, fetches step by step: memory latency is all there
// is to hide. Of many tiles each fetches its share, since one that fetched all of it would wait for
// memory twice as long as it computes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/kernel_table.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {

constexpr std::size_t kTileRows = Vector::kLanes == 8 ? 6 : 12;
constexpr std::size_t kBlockSteps = 320;
constexpr std::size_t kMostBlocksAtOnce = 4;

// Panels say how a step is stored, loaded and multiplied. Slot is where, in values from the start
// of its step, the weight of an output for the n-th k of the step lies.

struct F32Panel {
  using Weight = float;
  using Input = float;
  using W = Vector::F;
  static constexpr std::size_t kPerStep = 1;

  static void Load(const float* step, W& low, W& high) noexcept {
    low = Vector::Load(step);
    high = Vector::Load(step + Vector::kLanes);
  }
  static Vector::F Broadcast(const float* x) noexcept { return Vector::Set(*x); }
  static Vector::F MulAdd(Vector::F x, W w, Vector::F sum) noexcept {
    return Vector::MulAdd(x, w, sum);
  }
  static std::size_t Slot(std::size_t output, std::size_t) noexcept { return output; }
  static float Narrow(float w) noexcept { return w; }
  static float Widen(float w) noexcept { return w; }
};

// Output i and output kLanes + i share a 32-bit lane: see Vector::LoadBf16Pairs.
struct Bf16Panel {
  using Weight = std::uint16_t;
  using Input = float;
  using W = Vector::F;
  static constexpr std::size_t kPerStep = 1;

  static void Load(const std::uint16_t* step, W& low, W& high) noexcept {
    Vector::LoadBf16Pairs(step, low, high);
  }
  static Vector::F Broadcast(const float* x) noexcept { return Vector::Set(*x); }
  static Vector::F MulAdd(Vector::F x, W w, Vector::F sum) noexcept {
    return Vector::MulAdd(x, w, sum);
  }
  static std::size_t Slot(std::size_t output, std::size_t) noexcept {
    return 2 * (output % Vector::kLanes) + output / Vector::kLanes;
  }
  static std::uint16_t Narrow(float w) noexcept { return Bf16FromFloat(w); }
  static float Widen(std::uint16_t w) noexcept { return FloatFromBf16(w); }
};

template <class Panel>
constexpr std::size_t kStepWeights = kPanelWidth * Panel::kPerStep;

template <class Panel>
constexpr std::size_t Steps(std::size_t k) noexcept {
  return (k + Panel::kPerStep - 1) / Panel::kPerStep;
}

// Inputs from a row of x that was prepared to the next: rows are whole cache lines, since a tile of
// 16 lines that are split takes five times as long to load.
template <class Panel>
constexpr std::size_t PreparedStride(std::size_t k) noexcept {
  using Input = typename Panel::Input;
  return RoundUp(Steps<Panel>(k) * sizeof(Input), 64) / sizeof(Input);
}

// What one call of Multiply works on.
template <class Panel>
struct Product {
  const typename Panel::Input* x;  // [rows, steps]
  std::size_t x_stride;
  const typename Panel::Weight* panel;  // [steps, kStepWeights]
  std::size_t panel_bytes;              // to the next panel
  float* y;                             // [rows, kPanelWidth]
  std::size_t y_stride;
};

// y [kRows, kPanelWidth] (+)= the sums of kBlocks adjoining blocks of `steps` steps.
template <class Panel, std::size_t kRows, std::size_t kBlocks, bool kFetchNext>
inline void Tile(const Product<Panel>& p, std::size_t steps, bool accumulate) noexcept {
  if constexpr (!kFetchNext) FetchResults<kRows>(p.y, p.y_stride);
  Vector::F sums[kBlocks][kRows][2];
#pragma GCC unroll 16
  for (std::size_t b = 0; b < kBlocks; ++b) {
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) sums[b][r][0] = sums[b][r][1] = Vector::Zero();
  }
  for (std::size_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (std::size_t b = 0; b < kBlocks; ++b) {
      const std::size_t at = b * steps + i;
      const typename Panel::Weight* step = p.panel + at * kStepWeights<Panel>;
      if constexpr (kFetchNext) {
        const char* next = reinterpret_cast<const char*>(step) + p.panel_bytes;
        constexpr std::size_t kStepBytes = kStepWeights<Panel> * sizeof(*step);
#pragma GCC unroll 16
        for (std::size_t line = 0; line < kStepBytes; line += 64) Vector::Prefetch(next + line);
      }
      typename Panel::W low;
      typename Panel::W high;
      Panel::Load(step, low, high);
#pragma GCC unroll 16
      for (std::size_t r = 0; r < kRows; ++r) {
        const auto x = Panel::Broadcast(p.x + r * p.x_stride + at);
        sums[b][r][0] = Panel::MulAdd(x, low, sums[b][r][0]);
        sums[b][r][1] = Panel::MulAdd(x, high, sums[b][r][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    float* y = p.y + r * p.y_stride;
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      float* to = y + half * Vector::kLanes;
      Vector::F sum = sums[0][r][half];
      if (accumulate) sum = Vector::Add(Vector::Load(to), sum);
#pragma GCC unroll 16
      for (std::size_t b = 1; b < kBlocks; ++b) sum = Vector::Add(sum, sums[b][r][half]);
      Vector::Store(to, sum);
    }
  }
}

// Fetches part `share` of `shares` of the same block of the next panel.
template <class Panel>
inline void FetchShare(const Product<Panel>& p, std::size_t steps, std::size_t share,
                       std::size_t shares) noexcept {
  const char* next = reinterpret_cast<const char*>(p.panel) + p.panel_bytes;
  const std::size_t lines = steps * kStepWeights<Panel> * sizeof(*p.panel) / 64;
  for (std::size_t i = lines * share / shares; i < lines * (share + 1) / shares; ++i) {
    Vector::Prefetch(next + i * 64);
  }
}

// All rows over one block, in tiles of nearly equal height.
template <class Panel>
inline void OneBlock(const Product<Panel>& p, std::size_t rows, std::size_t steps,
                     bool accumulate) noexcept {
  if (rows <= kTileRows) {
    WithHeight<kTileRows>(rows, [&](auto tile) {
      Tile<Panel, decltype(tile)::kRows, 1, true>(p, steps, accumulate);
    });
    return;
  }
  const std::size_t tiles = DivideUp(rows, kTileRows);
  std::size_t done = 0;
  ForTiles<kTileRows>(rows, [&](auto tile, std::size_t first) {
    FetchShare(p, steps, done++, tiles);
    Product<Panel> at = p;
    at.x += first * p.x_stride;
    at.y += first * p.y_stride;
    Tile<Panel, decltype(tile)::kRows, 1, false>(at, steps, accumulate);
  });
}

// How many blocks a tile of `rows` rows takes side by side: enough for eight chains.
inline std::size_t BlocksAtOnce(std::size_t rows) noexcept {
  return rows < kMostBlocksAtOnce ? kMostBlocksAtOnce / rows : 1;
}

// Steps of one of the equal blocks that `steps` are cut into; the last may have fewer.
constexpr std::size_t BlockSteps(std::size_t steps) noexcept {
  return DivideUp(steps, DivideUp(steps, kBlockSteps));
}

// y [rows, kPanelWidth] (+)= x panel over all of k.
template <class Panel>
inline void Blocks(Product<Panel> p, std::size_t rows, std::size_t steps,
                   bool accumulate) noexcept {
  const std::size_t block = BlockSteps(steps);
  const std::size_t at_once = BlocksAtOnce(rows);
  while (steps > 0) {
    std::size_t blocks = steps / block;  // whole ones
    if (blocks > at_once) blocks = at_once;
    std::size_t done = blocks * block;
    if (blocks == 4) {
      Tile<Panel, 1, 4, true>(p, block, accumulate);
    } else if (blocks == 3) {
      Tile<Panel, 1, 3, true>(p, block, accumulate);
    } else if (blocks == 2) {
      WithHeight<2>(rows, [&](auto tile) {
        Tile<Panel, decltype(tile)::kRows, 2, true>(p, block, accumulate);
      });
    } else {
      if (blocks == 0) done = steps;
      OneBlock(p, rows, done, accumulate);
    }
    accumulate = true;
    p.x += done;
    p.panel += done * kStepWeights<Panel>;
    steps -= done;
  }
}

template <class Panel>
std::size_t PanelBytes(std::size_t k) noexcept {
  return RoundUp(Steps<Panel>(k) * kStepWeights<Panel> * sizeof(typename Panel::Weight), 64);
}

template <class Panel>
void Multiply(const void* x, std::size_t x_stride, std::size_t rows, const void* panel,
              std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
              bool accumulate) noexcept {
  const std::size_t steps = Steps<Panel>(k);
  Product<Panel> p;
  p.x = static_cast<const typename Panel::Input*>(x);
  p.x_stride = Panel::kPerStep == 1 ? x_stride : PreparedStride<Panel>(k);
  p.panel = static_cast<const typename Panel::Weight*>(panel);
  p.panel_bytes = PanelBytes<Panel>(k);
  if (outputs == kPanelWidth) {
    p.y = y;
    p.y_stride = y_stride;
    Blocks(p, rows, steps, accumulate);
    return;
  }
  ThroughCopy<4 * kTileRows>(y, y_stride, rows, outputs, accumulate,
                             [&](std::size_t first, std::size_t height, float* copy) {
                               Product<Panel> at = p;
                               at.x += first * p.x_stride;
                               at.y = copy;
                               at.y_stride = kPanelWidth;
                               Blocks(at, height, steps, accumulate);
                             });
}

template <class Panel>
void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  auto* to = static_cast<typename Panel::Weight*>(panel);
  const std::size_t bytes = PanelBytes<Panel>(k);
  if (outputs < kPanelWidth || k % Panel::kPerStep != 0 ||
      Steps<Panel>(k) * kStepWeights<Panel> * sizeof(*to) < bytes) {
    __builtin_memset(panel, 0, bytes);
  }
  for (std::size_t i = 0; i < k; ++i) {
    typename Panel::Weight* step = to + i / Panel::kPerStep * kStepWeights<Panel>;
    for (std::size_t output = 0; output < outputs; ++output) {
      step[Panel::Slot(output, i % Panel::kPerStep)] = Panel::Narrow(w[output * stride + i]);
    }
  }
}

template <class Panel>
void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  const auto* from = static_cast<const typename Panel::Weight*>(panel);
  for (std::size_t i = 0; i < k; ++i) {
    const typename Panel::Weight* step = from + i / Panel::kPerStep * kStepWeights<Panel>;
    w[i] = Panel::Widen(step[Panel::Slot(output, i % Panel::kPerStep)]);
  }
}

// The unit for panels that read float32 rows as they are.
template <class Panel>
constexpr GemmKernel MakeGemm() noexcept {
  return {.panel_width = kPanelWidth,
          .tile_rows = kTileRows,
          .panel_bytes = &PanelBytes<Panel>,
          .pack_panel = &PackPanel<Panel>,
          .unpack_row = &UnpackRow<Panel>,
          .input_row_bytes = &NoInputRowBytes,
          .input_unit = Panel::kPerStep,
          .prepare_input = nullptr,
          .multiply = &Multiply<Panel>};
}

}  // namespace
}  // namespace slimformer::kernels
