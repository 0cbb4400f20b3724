// KV pages of bfloat16, multiplied as they are, and an exponential as exact as they need. To be
// included after the tier's vector-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend-inl.h"
#include "kernels/avx512/vector-inl.h"

namespace slimformer::kernels {
namespace {

// exp(score - max), off by 2^-18 at most where the rounding that follows is off by 2^-9: the
// difference times log2 e is a whole number and a fraction f in [0, 1), and 2^f a polynomial of
// degree 4 fitted for the least greatest relative error. 0 for -inf; NaN for NaN. max log2 e is
// rounded before it is subtracted, which multiplies all weights beside a maximum by one factor, and
// so changes none of their shares.
inline Vector::F CoarseExp(Vector::F score, Vector::F max) noexcept {
  const Vector::F log2_e = Vector::Set(1.44269504F);
  const Vector::F x = _mm512_fmsub_ps(score, log2_e, Vector::Mul(max, log2_e));
  const Vector::F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vector::F p = Vector::Set(1.35341678e-02F);
  p = Vector::MulAdd(p, f, Vector::Set(5.20114601e-02F));
  p = Vector::MulAdd(p, f, Vector::Set(2.41442755e-01F));
  p = Vector::MulAdd(p, f, Vector::Set(6.93003833e-01F));
  p = Vector::MulAdd(p, f, Vector::Set(1.00000262F));
  return _mm512_scalef_ps(p, x);
}

// Pairs of bfloat16, multiplied by pairs of bfloat16.
struct Bf16DotPage {
  static constexpr bool kScaled = false;
  using Value = std::uint16_t;
  using Multiplier = std::uint16_t;
  using W = __m512i;
  static constexpr std::size_t kPerStep = 2;
  static constexpr std::size_t kParts = 1;

  template <std::size_t kPart>
  static W Load(const std::uint16_t* step) noexcept {
    return _mm512_loadu_si512(step);
  }
  static __m512i Broadcast(const std::uint16_t* pair) noexcept {
    int bits;
    __builtin_memcpy(&bits, pair, sizeof(bits));
    return _mm512_set1_epi32(bits);
  }
  static Vector::F MulAdd(__m512i x, W w, Vector::F sum) noexcept {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static Vector::F Weight(Vector::F score, Vector::F max) noexcept { return CoarseExp(score, max); }
  static void Store(std::uint16_t* to, Vector::F x) noexcept {
    const __m256bh halves = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(halves));
  }
};

}  // namespace
}  // namespace slimformer::kernels
