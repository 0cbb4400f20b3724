// Rotating a group of values and rounding it to int8, as quantisation.h says. To be included after
// the tier's vector-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {

// n <= kLanes lanes of x from p on, the others 0.
inline Vector::F LoadLanes(const float* p, std::size_t n) noexcept {
  return n >= Vector::kLanes ? Vector::Load(p) : Vector::Load(p, n);
}

// Butterflies within each of the vectors, from stride kStride down.
template <std::size_t kStride, std::size_t kVectors>
inline void ButterflyLanes(Vector::F (&v)[kVectors]) noexcept {
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVectors; ++i) v[i] = Vector::Butterfly<kStride>(v[i]);
  if constexpr (kStride > 1) ButterflyLanes<kStride / 2>(v);
}

// to [kGroup] = the transform of x [kGroup] times factor; they may be the same.
template <std::size_t kGroup>
inline void Rotate(const float* x, float factor, float* to) noexcept {
  constexpr std::size_t kVectors = kGroup / Vector::kLanes;
  Vector::F v[kVectors];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVectors; ++i) v[i] = Vector::Load(x + i * Vector::kLanes);
#pragma GCC unroll 8
  for (std::size_t stride = kVectors / 2; stride > 0; stride /= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kVectors; ++i) {
      if (i & stride) continue;
      const Vector::F low = v[i];
      v[i] = Vector::Add(low, v[i + stride]);
      v[i + stride] = Vector::Sub(low, v[i + stride]);
    }
  }
  ButterflyLanes<Vector::kLanes / 2>(v);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVectors; ++i) {
    Vector::Store(to + i * Vector::kLanes, Vector::Mul(v[i], Vector::Set(factor)));
  }
}

// The scale of x [n]: NaN where a value is not finite.
inline float ScaleOf(const float* x, std::size_t n) noexcept {
  Vector::I largest = Vector::ZeroInt();
  for (std::size_t i = 0; i < n; i += Vector::kLanes) {
    largest = Vector::MaxMagnitude(largest, LoadLanes(x + i, n - i));
  }
  const auto magnitude = __builtin_bit_cast(float, Vector::MaxLanes(largest));
  if (!(magnitude < __builtin_inff())) return __builtin_nanf("");
  const float scale = magnitude / kLargestInt8;
  return scale > kSmallestScale ? scale : kSmallestScale;
}

// to [kGroup] = x [n] / scale, whole numbers, zeros beyond n; returns their sum. Integer is int8_t
// or int16_t. Where the scale is NaN what is written and returned is of no consequence.
template <std::size_t kGroup, class Integer>
inline std::int32_t QuantiseGroup(const float* x, std::size_t n, float scale,
                                  Integer* to) noexcept {
  const Vector::F inverse = Vector::Set(1.0F / scale);
  Vector::I sum = Vector::ZeroInt();
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kGroup; i += Vector::kLanes) {
    const Vector::F v = i < n ? LoadLanes(x + i, n - i) : Vector::Zero();
    const Vector::I whole = Vector::ToInt(Vector::Mul(v, inverse));
    Vector::StoreWhole(to + i, whole);
    sum = Vector::AddInt(sum, whole);
  }
  return Vector::SumLanes(sum);
}

// A group of activations, rotated if that is wanted: to [kGroup] and its scale; returns the sum.
template <std::size_t kGroup, bool kRotated, class Integer>
inline std::int32_t QuantiseInput(const float* x, std::size_t n, Integer* to,
                                  float& scale) noexcept {
  float rotated[kGroup];
  if (kRotated && n == kGroup) {
    Rotate<kGroup>(x, 1.0F, rotated);
    x = rotated;
  }
  scale = ScaleOf(x, n);
  return QuantiseGroup<kGroup>(x, n, scale, to);
}

}  // namespace
}  // namespace slimformer::kernels
