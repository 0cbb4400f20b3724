// y = x W' for one panel of bfloat16 pairs and few rows, by vectors: bit for bit what tiles give.
// To be included after the tier's vector-inl.h.
//
// A tile of columns takes as long for one row as for sixteen, and tiles that are used now and then
// start slowly: a token was decoded in a sixth less time by vectors. TDPBF16PS multiplies and adds
// the first values of 16 pairs one after another, from zero, the second ones beside them, adds both
// sums and then adds that to its tile; each step rounds to the nearest float32, and what is below
// the normal numbers counts as zero. Multiply-adds of vectors in that order and mode give the same.
//
// Four rows by two vectors take 16 chains of multiply-adds and 8 sums, 4 registers of weights and 2
// of x. Weights are widened by a shift and a mask: 28 operations for four rows and 128 bytes, in
// which time a core's share of memory delivers 100.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/tiles-inl.h"
#include "kernels/avx512/vector-inl.h"
#include "kernels/avx512_bf16/bf16_panel-inl.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {
namespace amx {

constexpr std::size_t kFewRows = 4;
constexpr std::size_t kChunkSteps = 16;

// Numbers below the normal ones are zeros while it lives, as they are to tiles.
class FlushScope {
 public:
  FlushScope() noexcept : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushResults | kInputs); }
  ~FlushScope() { _mm_setcsr(before_); }
  FlushScope(const FlushScope&) = delete;
  FlushScope& operator=(const FlushScope&) = delete;

 private:
  static constexpr unsigned kFlushResults = 0x8000;
  static constexpr unsigned kInputs = 0x0040;
  unsigned before_;
};

// The first and the second values of pairs of bfloat16.
struct Widened {
  Vector::F first;
  Vector::F second;

  explicit Widened(__m512i pairs) noexcept
      : first(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))),
        second(_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)))) {}
};

// y [kRows, kPanelWidth] (+)= prepared rows x times steps of pairs, of which next_step(pairs) loads
// the next.
template <std::size_t kRows, class NextStep>
[[gnu::always_inline]] inline void MultiplyFew(const std::uint32_t* x, std::size_t k, float* y,
                                               std::size_t y_stride, bool accumulate,
                                               const NextStep& next_step) noexcept {
  const std::size_t steps = Steps<Bf16DotPanel>(k);
  const std::size_t x_stride = PreparedStride<Bf16DotPanel>(k);
  Vector::F total[kRows][2];
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      const float* from = y + r * y_stride + half * Vector::kLanes;
      total[r][half] = accumulate ? Vector::Load(from) : Vector::Zero();
    }
  }
  for (std::size_t begin = 0; begin < steps; begin += kChunkSteps) {
    const std::size_t end = begin + kChunkSteps < steps ? begin + kChunkSteps : steps;
    Vector::F first[kRows][2];
    Vector::F second[kRows][2];
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRows; ++r) {
      first[r][0] = first[r][1] = second[r][0] = second[r][1] = Vector::Zero();
    }
    for (std::size_t i = begin; i < end; ++i) {
      __m512i pairs[2];
      next_step(pairs);
      const Widened w[2] = {Widened(pairs[0]), Widened(pairs[1])};
#pragma GCC unroll 4
      for (std::size_t r = 0; r < kRows; ++r) {
        const Widened pair(_mm512_set1_epi32(static_cast<int>(x[r * x_stride + i])));
#pragma GCC unroll 2
        for (std::size_t half = 0; half < 2; ++half) {
          first[r][half] = Vector::MulAdd(pair.first, w[half].first, first[r][half]);
          second[r][half] = Vector::MulAdd(pair.second, w[half].second, second[r][half]);
        }
      }
    }
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (std::size_t half = 0; half < 2; ++half) {
        total[r][half] = Vector::Add(total[r][half], Vector::Add(first[r][half], second[r][half]));
      }
    }
  }
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kRows; ++r) {
    Vector::Store(y + r * y_stride, total[r][0]);
    Vector::Store(y + r * y_stride + Vector::kLanes, total[r][1]);
  }
}

// y [rows, outputs] (+)= the same for up to kFewRows rows of one panel.
template <class NextStep>
inline void MultiplyFewRows(const void* x, std::size_t rows, std::size_t k, float* y,
                            std::size_t y_stride, std::size_t outputs, bool accumulate,
                            const NextStep& next_step) noexcept {
  const FlushScope flush;
  const auto multiply = [&](float* to, std::size_t stride) {
    WithHeight<kFewRows>(rows, [&](auto tile) {
      MultiplyFew<decltype(tile)::kRows>(static_cast<const std::uint32_t*>(x), k, to, stride,
                                         accumulate, next_step);
    });
  };
  if (outputs == kPanelWidth) {
    multiply(y, y_stride);
    return;
  }
  ThroughCopy<kFewRows>(
      y, y_stride, rows, outputs, accumulate,
      [&](std::size_t, std::size_t, float* copy) { multiply(copy, kPanelWidth); });
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
