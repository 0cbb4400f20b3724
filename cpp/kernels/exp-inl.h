// exp and log without a maths library. To be included after the tier's vector-inl.h.
#pragma once

#include <cstdint>

namespace slimformer::kernels {
namespace {

// exp(x) = 2^n exp(r) with n = round(x / ln 2) and r = x - n ln 2, |r| < 0.347. ln 2 is
// subtracted in two parts, the first of 9 bits so that its product with n is exact. exp(r) is
// 1 + r + r^2 p(r), p of degree 4 fitted for the least greatest relative error (2^-27). Results
// near overflow and below the normal numbers come out right too. At most 2 units in the last
// place off; 0 from -104 down, infinity from 88.73 up, NaN for NaN.
inline Vector::F Exp(Vector::F x) noexcept {
  x = Vector::Min(Vector::Set(89.0F), Vector::Max(Vector::Set(-104.0F), x));
  const Vector::F n = Vector::Round(Vector::Mul(x, Vector::Set(1.44269504F)));
  Vector::F r = Vector::NegMulAdd(n, Vector::Set(0x1.63p-1F), x);
  r = Vector::NegMulAdd(n, Vector::Set(-0x1.bd0106p-13F), r);
  Vector::F p = Vector::Set(1.38144672e-3F);
  p = Vector::MulAdd(p, r, Vector::Set(8.36878084e-3F));
  p = Vector::MulAdd(p, r, Vector::Set(4.16683927e-2F));
  p = Vector::MulAdd(p, r, Vector::Set(1.66665196e-1F));
  p = Vector::MulAdd(p, r, Vector::Set(4.99999940e-1F));
  const Vector::F exp_r = Vector::Add(Vector::MulAdd(p, Vector::Mul(r, r), r), Vector::Set(1.0F));
  return Vector::TimesPowerOfTwo(exp_r, n);
}

// log(x) for normal x > 0: x = 2^e m with m in [1/sqrt 2, sqrt 2), log m = 2 atanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172: the series to s^15 leaves 1e-14.
inline double Log(double x) noexcept {
  auto bits = __builtin_bit_cast(std::uint64_t, x);
  constexpr std::uint64_t kHalfRootOfTwo = 0x3fe6a09e667f3bcd;
  const std::int64_t exponent = static_cast<std::int64_t>(bits - kHalfRootOfTwo) >> 52;
  bits -= static_cast<std::uint64_t>(exponent) << 52;
  const double m = __builtin_bit_cast(double, bits);
  const double s = (m - 1.0) / (m + 1.0);
  double series = 0.0;
  for (int power = 15; power >= 1; power -= 2) series = series * s * s + 1.0 / power;
  return static_cast<double>(exponent) * 0.693147180559945309 + 2.0 * s * series;
}

}  // namespace
}  // namespace slimformer::kernels
