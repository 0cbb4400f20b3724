// Whole numbers of 8 bits as bfloat16 by look-up (VBMI: VPERMI2B finds one of 128 bytes for each of
// 64): both bytes of the magnitude, to which the sign is added. Three look-ups and two
// interleavings a vector take half as long as converting by way of float32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/avx512/vector-inl.h"

namespace slimformer::kernels {
namespace {

// The bytes of bfloat16(0), bfloat16(1) ... bfloat16(127).
struct Bf16Bytes {
  alignas(64) std::uint8_t low[128];
  alignas(64) std::uint8_t high[128];
};

constexpr Bf16Bytes MakeBf16Bytes() noexcept {
  Bf16Bytes bytes{};
  for (std::size_t i = 0; i < 128; ++i) {
    const auto bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(i)) >> 16;
    bytes.low[i] = static_cast<std::uint8_t>(bits & 0xff);
    bytes.high[i] = static_cast<std::uint8_t>(bits >> 8);
  }
  return bytes;
}

struct LookUpWidener {
  static constexpr std::size_t kAtOnce = 64;

  static void Widen(const std::byte* from, std::uint16_t* to) noexcept {
    static constexpr Bf16Bytes kBytes = MakeBf16Bytes();
    // Interleaving takes eight bytes of each quarter: those of the first half of the values, then
    // those of the second.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i q = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(from));
    const __m512i magnitude = _mm512_abs_epi8(q);
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kBytes.low), magnitude,
                                                 _mm512_load_si512(kBytes.low + 64));
    const __m512i unsigned_high = _mm512_permutex2var_epi8(
        _mm512_load_si512(kBytes.high), magnitude, _mm512_load_si512(kBytes.high + 64));
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    const __m512i high =
        _mm512_ternarylogic_epi64(unsigned_high, q, _mm512_set1_epi8(-128), kOrAnd);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + 32, _mm512_unpackhi_epi8(low, high));
  }
};

}  // namespace
}  // namespace slimformer::kernels
