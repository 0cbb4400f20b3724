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

// The vectors of a group become its transform.
template <std::size_t kVectors>
inline void Transform(Vector::F (&v)[kVectors]) noexcept {
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
}

template <std::size_t kGroup>
constexpr std::size_t kGroupVectors = kGroup / Vector::kLanes;

// v = x [n], zeros beyond n.
template <std::size_t kVectors>
inline void LoadGroup(const float* x, std::size_t n, Vector::F (&v)[kVectors]) noexcept {
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVectors; ++i) {
    const std::size_t at = i * Vector::kLanes;
    v[i] = at < n ? LoadLanes(x + at, n - at) : Vector::Zero();
  }
}

// to [kGroup] = the transform of x [kGroup] times factor; they may be the same.
template <std::size_t kGroup>
inline void Rotate(const float* x, float factor, float* to) noexcept {
  Vector::F v[kGroupVectors<kGroup>];
  LoadGroup(x, kGroup, v);
  Transform(v);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kGroupVectors<kGroup>; ++i) {
    Vector::Store(to + i * Vector::kLanes, Vector::Mul(v[i], Vector::Set(factor)));
  }
}

// The scale of values of which these are the largest magnitude's bits, see MaxMagnitude: NaN where
// one is not finite.
inline float ScaleFor(std::int32_t largest) noexcept {
  const auto magnitude = __builtin_bit_cast(float, largest);
  if (!(magnitude < __builtin_inff())) return __builtin_nanf("");
  const float scale = magnitude / kLargestInt8;
  return scale > kSmallestScale ? scale : kSmallestScale;
}

// The scale of a group.
template <std::size_t kVectors>
inline float ScaleOf(const Vector::F (&v)[kVectors]) noexcept {
  Vector::I largest = Vector::ZeroInt();
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVectors; ++i) largest = Vector::MaxMagnitude(largest, v[i]);
  return ScaleFor(Vector::MaxLanes(largest));
}

// to [kVectors * kLanes] = v / scale, whole numbers, and the sums of equal parts of them. Integer
// is int8_t or int16_t. Where the scale is NaN what is written is of no consequence.
template <std::size_t kVectors, class Integer, std::size_t kParts>
inline void QuantiseGroup(const Vector::F (&v)[kVectors], float scale, Integer* to,
                          std::int32_t (&sums)[kParts]) noexcept {
  constexpr std::size_t kOfPart = kVectors / kParts;
  const Vector::F inverse = Vector::Set(1.0F / scale);
#pragma GCC unroll 2
  for (std::size_t part = 0; part < kParts; ++part) {
    Vector::I sum = Vector::ZeroInt();
#pragma GCC unroll 8
    for (std::size_t i = part * kOfPart; i < (part + 1) * kOfPart; ++i) {
      const Vector::I whole = Vector::ToInt(Vector::Mul(v[i], inverse));
      Vector::StoreWhole(to + i * Vector::kLanes, whole);
      sum = Vector::AddInt(sum, whole);
    }
    sums[part] = Vector::SumLanes(sum);
  }
}

// A group of activations, rotated if that is wanted: to [kGroup], its scale, and sums of its parts.
template <std::size_t kGroup, bool kRotated, class Integer, std::size_t kParts>
[[gnu::always_inline]] inline void QuantiseInput(const float* x, std::size_t n, Integer* to,
                                                 float& scale,
                                                 std::int32_t (&sums)[kParts]) noexcept {
  Vector::F v[kGroupVectors<kGroup>];
  if (n == kGroup) {
    LoadGroup(x, kGroup, v);
    if (kRotated) Transform(v);
  } else {
    LoadGroup(x, n, v);
  }
  scale = ScaleOf(v);
  QuantiseGroup(v, scale, to, sums);
}

}  // namespace
}  // namespace slimformer::kernels
