// Activations of feed-forward sub-blocks. To be included after the tier's vector-inl.h.
//
// Each is one load-compute-store loop over all values, with the product that a gated sub-block
// takes in the same loop: a second pass over the caches would cost as much as the arithmetic.
#pragma once

#include <cstddef>

#include "kernels/each_vector-inl.h"
#include "kernels/exp-inl.h"

namespace slimformer::kernels {
namespace {

// x / (1 + exp(-x)): Exp is at most 2 units in the last place off, the sum and the quotient half a
// unit each, so the result is 3.5 at most where it is a normal number. Below -88.7 the quotient is
// -0 where it should be some -1e-37.
inline Vector::F Silu(Vector::F x) noexcept {
  return Vector::Div(x, Vector::Add(Vector::Set(1.0F), Exp(Vector::Sub(Vector::Zero(), x))));
}

// x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / 2 (1 + tanh(u)). An
// error of 2 u, some 2 units in its last place, is a relative one of its exponential.
inline Vector::F GeluTanh(Vector::F x) noexcept {
  const Vector::F square = Vector::Mul(x, x);
  const Vector::F slope =
      Vector::MulAdd(square, Vector::Set(-0.0713548163F), Vector::Set(-1.59576912F));
  return Vector::Div(x, Vector::Add(Vector::Set(1.0F), Exp(Vector::Mul(x, slope))));
}

// max(x, 0) - a Q(a), a = |x|, where Q(a) = exp(-a^2 / 2) R(a) is the normal distribution's mass
// above a. R is t p(t) with t = 1 / (1 + 0.3 a), p of degree 7, fitted for the least greatest
// relative error for a < 14.5 (2^-22.4); beyond Q is 0. The rounding of a^2 is a relative error of
// a^2 / 2 units of Q.
inline Vector::F Gelu(Vector::F x) noexcept {
  const Vector::F a = Vector::Abs(x);
  const Vector::F one = Vector::Set(1.0F);
  const Vector::F t = Vector::Div(one, Vector::MulAdd(a, Vector::Set(0.3F), one));
  Vector::F p = Vector::Set(3.54237705e-2F);
  p = Vector::MulAdd(p, t, Vector::Set(-1.56158581e-1F));
  p = Vector::MulAdd(p, t, Vector::Set(2.04557002e-1F));
  p = Vector::MulAdd(p, t, Vector::Set(-5.20341992e-2F));
  p = Vector::MulAdd(p, t, Vector::Set(1.27691865e-1F));
  p = Vector::MulAdd(p, t, Vector::Set(1.00175925e-1F));
  p = Vector::MulAdd(p, t, Vector::Set(1.20712139e-1F));
  p = Vector::MulAdd(p, t, Vector::Set(1.19632006e-1F));
  const Vector::F at = Vector::Min(Vector::Set(15.0F), a);  // or 0 times infinity would be NaN
  const Vector::F density = Exp(Vector::Mul(Vector::Mul(at, Vector::Set(-0.5F)), at));
  const Vector::F above = Vector::Mul(Vector::Mul(p, t), density);
  return Vector::NegMulAdd(at, above, Vector::Max(Vector::Zero(), x));
}

inline Vector::F Relu(Vector::F x) noexcept { return Vector::Max(Vector::Zero(), x); }

template <Vector::F (*kActivation)(Vector::F) noexcept>
void Activate(const float* x, const float* factors, std::size_t n, float* y) noexcept {
  if (factors == nullptr) {
    ForEachVector(
        n, [&](std::size_t i, auto lanes) { lanes.Store(y + i, kActivation(lanes.Load(x + i))); });
    return;
  }
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, Vector::Mul(kActivation(lanes.Load(x + i)), lanes.Load(factors + i)));
  });
}

}  // namespace
}  // namespace slimformer::kernels
