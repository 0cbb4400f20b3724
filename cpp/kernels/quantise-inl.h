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

template <std::size_t kGroup>
constexpr std::size_t kGroupVectors = kGroup / Vector::kLanes;

constexpr std::size_t kBlockVectors = kGroupVectors<kRotatedBlock>;

// Butterflies within each vector of a block, from stride kStride down.
template <std::size_t kStride>
inline void ButterflyLanes(Vector::F* block) noexcept {
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kBlockVectors; ++i) block[i] = Vector::Butterfly<kStride>(block[i]);
  if constexpr (kStride > 1) ButterflyLanes<kStride / 2>(block);
}

// The vectors of a block become its transform.
inline void Transform(Vector::F* block) noexcept {
#pragma GCC unroll 8
  for (std::size_t stride = kBlockVectors / 2; stride > 0; stride /= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kBlockVectors; ++i) {
      if (i & stride) continue;
      const Vector::F low = block[i];
      block[i] = Vector::Add(low, block[i + stride]);
      block[i + stride] = Vector::Sub(low, block[i + stride]);
    }
  }
  ButterflyLanes<Vector::kLanes / 2>(block);
}

// The same of all whole blocks of a group that has n values.
template <std::size_t kVectors>
inline void TransformBlocks(std::size_t n, Vector::F (&v)[kVectors]) noexcept {
#pragma GCC unroll 4
  for (std::size_t block = 0; block < kVectors / kBlockVectors; ++block) {
    if ((block + 1) * kRotatedBlock <= n) Transform(v + block * kBlockVectors);
  }
}

// v = x [n], zeros beyond n.
template <std::size_t kVectors>
inline void LoadGroup(const float* x, std::size_t n, Vector::F (&v)[kVectors]) noexcept {
#pragma GCC unroll 24
  for (std::size_t i = 0; i < kVectors; ++i) {
    const std::size_t at = i * Vector::kLanes;
    v[i] = at < n ? LoadLanes(x + at, n - at) : Vector::Zero();
  }
}

// x [n] becomes the transforms of its whole blocks, times factor, and of what is left itself.
inline void Rotate(std::size_t n, float factor, float* x) noexcept {
  for (; n >= kRotatedBlock; n -= kRotatedBlock, x += kRotatedBlock) {
    Vector::F v[kBlockVectors];
    LoadGroup(x, kRotatedBlock, v);
    Transform(v);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kBlockVectors; ++i) {
      Vector::Store(x + i * Vector::kLanes, Vector::Mul(v[i], Vector::Set(factor)));
    }
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
#pragma GCC unroll 24
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
#pragma GCC unroll 24
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
    if (kRotated) TransformBlocks(kGroup, v);
  } else {
    LoadGroup(x, n, v);
    if (kRotated) TransformBlocks(n, v);
  }
  scale = ScaleOf(v);
  QuantiseGroup(v, scale, to, sums);
}

}  // namespace
}  // namespace slimformer::kernels
