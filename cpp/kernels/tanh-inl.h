// tanh, and the soft cap made of it. To be included after the tier's vector-inl.h.
#pragma once

namespace slimformer::kernels {
namespace {

// tanh(x) = x p(x^2) / q(x^2), both of degree 4, fitted for the least greatest relative error on
// |x| < 9 (2^-24.5 with coefficients in float32); beyond it is 1 to half a unit in the last place.
// At most 5 units off; NaN for NaN.
inline Vector::F Tanh(Vector::F x) noexcept {
  x = Vector::Min(Vector::Set(9.0F), Vector::Max(Vector::Set(-9.0F), x));
  const Vector::F square = Vector::Mul(x, x);
  Vector::F p = Vector::Set(1.33190783e-8F);
  p = Vector::MulAdd(p, square, Vector::Set(2.05834876e-5F));
  p = Vector::MulAdd(p, square, Vector::Set(3.49403499e-3F));
  p = Vector::MulAdd(p, square, Vector::Set(1.33797184e-1F));
  p = Vector::MulAdd(p, square, Vector::Set(1.0F));
  Vector::F q = Vector::Set(7.76202228e-7F);
  q = Vector::MulAdd(q, square, Vector::Set(3.28309339e-4F));
  q = Vector::MulAdd(q, square, Vector::Set(2.58710757e-2F));
  q = Vector::MulAdd(q, square, Vector::Set(4.67130333e-1F));
  q = Vector::MulAdd(q, square, Vector::Set(1.0F));
  return Vector::Div(Vector::Mul(x, p), q);
}

// cap tanh(x / cap), given 1 / cap.
inline Vector::F CapSoftly(Vector::F x, Vector::F cap, Vector::F inverse) noexcept {
  return Vector::Mul(cap, Tanh(Vector::Mul(x, inverse)));
}

}  // namespace
}  // namespace slimformer::kernels
