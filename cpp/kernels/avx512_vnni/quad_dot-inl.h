// Dot products by VPDPBUSD, which adds four products of an unsigned and a signed byte to each int32
// lane, without saturation: four times the multiply-adds of an FMA per instruction. To be included
// after the tier's vector-inl.h.
//
// Weights are the unsigned operand, int8 ones stored as q + 128. What that adds to a group's sum,
// 128 times the sum of x over the group, is the same for every output: prepare_input computes it
// once and the sums start from its negative, which costs a broadcast a group instead of bytes of
// the panel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/vector-inl.h"
#include "kernels/part_sums-inl.h"
#include "kernels/quantise-inl.h"

namespace slimformer::kernels {
namespace {

template <bool kRotatedGroups, class PartSums>
struct QuadDot {
  using I = __m512i;
  using Sums = PartSums;
  static constexpr std::size_t kGroup = Sums::kGroup;
  static constexpr bool kRotated = kRotatedGroups;
  static constexpr std::size_t kPerStep = 4;
  static constexpr std::uint32_t kOffset =
      128;  // unsigned: the sum beside a scale of NaN may be anything
  using Number = std::int8_t;
  struct Facts {
    float scale;
    std::int32_t start;  // of sums, with int8 weights
    [[no_unique_address]] Sums sums;
  };

  [[gnu::always_inline]] static void Prepare(const float* x, std::size_t n, Number* numbers,
                                             Facts& facts) noexcept {
    std::int32_t sums[Sums::kParts];
    QuantiseInput<kGroup, kRotated>(x, n, numbers, facts.scale, sums);
    facts.sums.Set(sums, facts.scale);
    facts.start = static_cast<std::int32_t>(-kOffset * static_cast<std::uint32_t>(sums[0]));
  }
  // In place: around the intrinsic GCC 12 moves every sum of a tile to another register and back,
  // and has none left for the float32 sums.
  [[gnu::always_inline]] static I MulAdd(I x, I w, I sum) noexcept {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }

  // int8 weights.
  static constexpr std::uint8_t Encode(int q) noexcept {
    return static_cast<std::uint8_t>(q + static_cast<int>(kOffset));
  }
  static int Decode(std::uint8_t w) noexcept { return w - static_cast<int>(kOffset); }
  static I Start(const Facts& x) noexcept { return _mm512_set1_epi32(x.start); }
  static I LoadInt8(const std::byte* p) noexcept { return _mm512_load_si512(p); }

  static void LoadInt4(const std::byte* p, I& low, I& high) noexcept {
    const I mask = _mm512_set1_epi8(15);
    const I both = _mm512_load_si512(p);
    low = _mm512_and_si512(both, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
};

}  // namespace
}  // namespace slimformer::kernels
