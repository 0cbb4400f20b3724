// Eight float32 lanes: AVX2 and FMA. Partial loads and stores touch
// nothing beyond the lanes they are asked for: masked lanes cannot fault.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace slimformer::kernels {
namespace {

struct Vector {
  using F = __m256;
  using I = __m256i;  // kLanes int32
  static constexpr std::size_t kLanes = 8;

  static F Zero() noexcept { return _mm256_setzero_ps(); }
  static F Set(float x) noexcept { return _mm256_set1_ps(x); }
  static F Load(const float* p) noexcept { return _mm256_loadu_ps(p); }
  static void Store(float* p, F x) noexcept { _mm256_storeu_ps(p, x); }

  // The first n < kLanes lanes; the others read as 0.
  static F Load(const float* p, std::size_t n) noexcept { return _mm256_maskload_ps(p, Mask(n)); }
  static void Store(float* p, std::size_t n, F x) noexcept { _mm256_maskstore_ps(p, Mask(n), x); }

  static F Add(F a, F b) noexcept { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) noexcept { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) noexcept { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) noexcept { return _mm256_div_ps(a, b); }
  static F MulAdd(F a, F b, F c) noexcept { return _mm256_fmadd_ps(a, b, c); }
  static F NegMulAdd(F a, F b, F c) noexcept { return _mm256_fnmadd_ps(a, b, c); }

  static F Abs(F x) noexcept { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), x); }

  // The second operand where either is a NaN.
  static F Min(F a, F b) noexcept { return _mm256_min_ps(a, b); }
  static F Max(F a, F b) noexcept { return _mm256_max_ps(a, b); }

  static F Round(F x) noexcept {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  // x 2^n for whole -252 <= n <= 254, in two factors: 2^n itself may be no normal number.
  static F TimesPowerOfTwo(F x, F n) noexcept {
    const F half = Round(Mul(n, Set(0.5F)));
    return Mul(Mul(x, PowerOfTwo(half)), PowerOfTwo(Sub(n, half)));
  }

  // x where the lane's index is in [begin, end), `other` elsewhere.
  static F Select(F x, F other, std::int32_t begin, std::int32_t end) noexcept {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane);
    const __m256i inside =
        _mm256_andnot_si256(before, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(inside));
  }

  // Whether a is above b in any lane.
  static bool AnyAbove(F a, F b) noexcept {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
  }

  static float FirstLane(F x) noexcept { return _mm256_cvtss_f32(x); }
  static float SumLanes(F x) noexcept {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float MaxLanes(F x) noexcept {
    __m128 max = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
  }

  static F LoadBf16(const std::uint16_t* p) noexcept {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }

  // Lane i of 32 bits holds column i in its low and column kLanes + i in its high half: widening
  // both takes a shift and a mask, and no shuffle.
  static void LoadBf16Pairs(const std::uint16_t* p, F& low, F& high) noexcept {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    low = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    high = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)));
  }

  // Rounds to nearest, ties to even; a NaN is made quiet and stays one.
  static void StoreBf16(std::uint16_t* p, F x) noexcept {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  static I ZeroInt() noexcept { return _mm256_setzero_si256(); }
  static I SetInt(std::int32_t x) noexcept { return _mm256_set1_epi32(x); }
  static F ToFloat(I x) noexcept { return _mm256_cvtepi32_ps(x); }

  // 2 * kLanes int8, widened to int16.
  static I LoadInt8(const std::byte* p) noexcept {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  // 2 * kLanes whole numbers, exact in bfloat16: their float32s end in 16 zeros.
  static void Int8ToBf16(const std::byte* from, std::uint16_t* to) noexcept {
    const I pairs = LoadInt8(from);
    const I low = _mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 16);
    const I low_bits = _mm256_castps_si256(ToFloat(low));
    const I high_bits = _mm256_castps_si256(ToFloat(_mm256_srai_epi32(pairs, 16)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_or_si256(_mm256_srli_epi32(low_bits, 16), high_bits));
  }

  // The low and the high four bits of 2 * kLanes bytes, widened to int16.
  static void LoadInt4(const std::byte* p, I& low, I& high) noexcept {
    const I bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    low = _mm256_and_si256(bytes, _mm256_set1_epi16(15));
    high = _mm256_srli_epi16(bytes, 4);
  }

  // The nearest whole numbers, ties to even.
  static I ToInt(F x) noexcept { return _mm256_cvtps_epi32(x); }

  // Whole numbers within the range of the type.
  static void StoreWhole(std::int8_t* p, I x) noexcept {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static void StoreWhole(std::int16_t* p, I x) noexcept {
    const __m128i packed =
        _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  static I AddInt(I a, I b) noexcept { return _mm256_add_epi32(a, b); }
  static std::int32_t SumLanes(I x) noexcept {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }

  // The larger of a and the bits of |x|, which are ordered as their values are, infinity and then
  // NaN above all others.
  static I MaxMagnitude(I a, F x) noexcept {
    return _mm256_max_epi32(a, _mm256_castps_si256(Abs(x)));
  }
  static std::int32_t MaxLanes(I x) noexcept {
    __m128i max = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    max = _mm_max_epi32(max, _mm_shuffle_epi32(max, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(max, _mm_shuffle_epi32(max, 0xb1)));
  }

  // sum + the products of both int16 of each lane.
  static I MulAddPairs(I x, I w, I sum) noexcept {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  }

  // Lane i: x[i] + x[i + stride], or x[i - stride] - x[i] where i has the stride's bit.
  template <std::size_t kStride>
  static F Butterfly(F x) noexcept {
    if constexpr (kStride == 4) {
      const F other = _mm256_permute2f128_ps(x, x, 1);
      return _mm256_blend_ps(Add(x, other), Sub(other, x), 0xf0);
    } else if constexpr (kStride == 2) {
      const F other = _mm256_permute_ps(x, 0x4e);
      return _mm256_blend_ps(Add(x, other), Sub(other, x), 0xcc);
    } else {
      const F other = _mm256_permute_ps(x, 0xb1);
      return _mm256_blend_ps(Add(x, other), Sub(other, x), 0xaa);
    }
  }

  // Into the first-level cache. Any address is allowed. Inlined always: GCC removes the call of a
  // function that does nothing else.
  [[gnu::always_inline]] static void PrefetchSoon(const void* p) noexcept {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }

  // Into the second-level cache. Any address is allowed.
  [[gnu::always_inline]] static void Prefetch(const void* p) noexcept {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }

 private:
  // 2^n for whole -126 <= n <= 127.
  static F PowerOfTwo(F n) noexcept {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }

  static __m256i Mask(std::size_t n) noexcept {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
};

}  // namespace
}  // namespace slimformer::kernels
