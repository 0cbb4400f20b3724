// Sixteen float32 lanes: AVX-512 F, BW, DQ and VL. Partial loads and stores are masked: they touch
// nothing beyond the lanes they are asked for.
#pragma once

// GCC 12 takes the undefined vectors in its own header for uninitialised variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

namespace slimformer::kernels {
namespace {

struct Vector {
  using F = __m512;
  using I = __m512i;  // kLanes int32
  static constexpr std::size_t kLanes = 16;

  static F Zero() noexcept { return _mm512_setzero_ps(); }
  static F Set(float x) noexcept { return _mm512_set1_ps(x); }
  static F Load(const float* p) noexcept { return _mm512_loadu_ps(p); }
  static void Store(float* p, F x) noexcept { _mm512_storeu_ps(p, x); }

  // The first n < kLanes lanes; the others read as 0.
  static F Load(const float* p, std::size_t n) noexcept {
    return _mm512_maskz_loadu_ps(Below(static_cast<std::int32_t>(n)), p);
  }
  static void Store(float* p, std::size_t n, F x) noexcept {
    _mm512_mask_storeu_ps(p, Below(static_cast<std::int32_t>(n)), x);
  }

  static F Add(F a, F b) noexcept { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) noexcept { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) noexcept { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) noexcept { return _mm512_div_ps(a, b); }
  static F MulAdd(F a, F b, F c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  static F NegMulAdd(F a, F b, F c) noexcept { return _mm512_fnmadd_ps(a, b, c); }

  static F Abs(F x) noexcept { return _mm512_abs_ps(x); }

  // The second operand where either is a NaN.
  static F Min(F a, F b) noexcept { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) noexcept { return _mm512_max_ps(a, b); }

  static F Round(F x) noexcept {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  // x 2^n for whole n.
  static F TimesPowerOfTwo(F x, F n) noexcept { return _mm512_scalef_ps(x, n); }

  // x where the lane's index is in [begin, end), `other` elsewhere.
  static F Select(F x, F other, std::int32_t begin, std::int32_t end) noexcept {
    const auto inside = static_cast<__mmask16>(Below(end) & ~Below(begin));
    return _mm512_mask_blend_ps(inside, other, x);
  }

  // Whether a is above b in any lane.
  static bool AnyAbove(F a, F b) noexcept { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

  static float FirstLane(F x) noexcept { return _mm512_cvtss_f32(x); }
  static float SumLanes(F x) noexcept { return _mm512_reduce_add_ps(x); }
  static float MaxLanes(F x) noexcept { return _mm512_reduce_max_ps(x); }

  // Lane i of 32 bits holds column i in its low and column kLanes + i in its high half: widening
  // both takes a shift and a mask, and no shuffle.
  static void LoadBf16Pairs(const std::uint16_t* p, F& low, F& high) noexcept {
    const __m512i pairs = _mm512_loadu_si512(p);
    low = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    high = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)));
  }

  static I ZeroInt() noexcept { return _mm512_setzero_si512(); }
  static I SetInt(std::int32_t x) noexcept { return _mm512_set1_epi32(x); }
  static F ToFloat(I x) noexcept { return _mm512_cvtepi32_ps(x); }

  // 2 * kLanes int8, widened to int16.
  static I LoadInt8(const std::byte* p) noexcept {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  // 2 * kLanes whole numbers, exact in bfloat16: their float32s end in 16 zeros.
  static void Int8ToBf16(const std::byte* from, std::uint16_t* to) noexcept {
    const I pairs = LoadInt8(from);
    const I low = _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16);
    const I low_bits = _mm512_castps_si512(ToFloat(low));
    const I high_bits = _mm512_castps_si512(ToFloat(_mm512_srai_epi32(pairs, 16)));
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32(low_bits, 16), high_bits));
  }

  // The low and the high four bits of 2 * kLanes bytes, widened to int16.
  static void LoadInt4(const std::byte* p, I& low, I& high) noexcept {
    const I bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    low = _mm512_and_si512(bytes, _mm512_set1_epi16(15));
    high = _mm512_srli_epi16(bytes, 4);
  }

  // The nearest whole numbers, ties to even.
  static I ToInt(F x) noexcept { return _mm512_cvtps_epi32(x); }

  // Whole numbers within the range of the type.
  static void StoreWhole(std::int8_t* p, I x) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static void StoreWhole(std::int16_t* p, I x) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }

  static I AddInt(I a, I b) noexcept { return _mm512_add_epi32(a, b); }
  static std::int32_t SumLanes(I x) noexcept { return _mm512_reduce_add_epi32(x); }

  // The larger of a and the bits of |x|, which are ordered as their values are, infinity and then
  // NaN above all others.
  static I MaxMagnitude(I a, F x) noexcept {
    return _mm512_max_epi32(a, _mm512_castps_si512(_mm512_abs_ps(x)));
  }
  static std::int32_t MaxLanes(I x) noexcept { return _mm512_reduce_max_epi32(x); }

  // sum + the products of both int16 of each lane.
  static I MulAddPairs(I x, I w, I sum) noexcept {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
  }

  // Lane i: x[i] + x[i + stride], or x[i - stride] - x[i] where i has the stride's bit.
  template <std::size_t kStride>
  static F Butterfly(F x) noexcept {
    if constexpr (kStride == 8) {
      return MulAdd(x, Signs<0xff00>(), _mm512_shuffle_f32x4(x, x, 0x4e));
    } else if constexpr (kStride == 4) {
      return MulAdd(x, Signs<0xf0f0>(), _mm512_shuffle_f32x4(x, x, 0xb1));
    } else if constexpr (kStride == 2) {
      return MulAdd(x, Signs<0xcccc>(), _mm512_permute_ps(x, 0x4e));
    } else {
      return MulAdd(x, Signs<0xaaaa>(), _mm512_permute_ps(x, 0xb1));
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
  // -1 in the lanes of the mask, 1 in the others.
  template <__mmask16 kNegative>
  static F Signs() noexcept {
    return _mm512_mask_blend_ps(kNegative, Set(1.0F), Set(-1.0F));
  }

  // The lanes whose index is below n, for any n.
  static __mmask16 Below(std::int32_t n) noexcept {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(n), lane);
  }
};

}  // namespace
}  // namespace slimformer::kernels
