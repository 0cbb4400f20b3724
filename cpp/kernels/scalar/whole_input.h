// The scalar tier's groups of whole numbers, as quantisation.h defines them, and the activations
// of int8 and int4 products.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {
namespace whole {

constexpr std::size_t kWidth = 16;  // of a panel
constexpr std::size_t kGroup = kInt8Group;

struct Input {
  float scale;
  std::int8_t q[kGroup];
};

constexpr std::size_t Groups(std::size_t k) noexcept { return (k + kGroup - 1) / kGroup; }

// v [kGroup] becomes its transform.
void Rotate(float* v) noexcept {
  for (std::size_t stride = kGroup / 2; stride > 0; stride /= 2) {
    for (std::size_t i = 0; i < kGroup; ++i) {
      if ((i & stride) != 0) continue;
      const float low = v[i];
      const float high = v[i + stride];
      v[i] = low + high;
      v[i + stride] = low - high;
    }
  }
}

// values [n] = a group of x [n], as it is or, if it is whole, its transform times factor.
template <bool kRotated>
void LoadGroup(const float* x, std::size_t n, float factor, float* values) noexcept {
  for (std::size_t i = 0; i < n; ++i) values[i] = x[i];
  if (!kRotated || n < kGroup) return;
  Rotate(values);
  for (std::size_t i = 0; i < n; ++i) values[i] *= factor;
}

// NaN where a value is not finite.
float Scale(const float* x, std::size_t n) noexcept {
  float largest = 0.0F;
  for (std::size_t i = 0; i < n; ++i) {
    const float magnitude = __builtin_fabsf(x[i]);
    if (!(magnitude < __builtin_inff())) return __builtin_nanf("");
    if (magnitude > largest) largest = magnitude;
  }
  const float scale = largest / kLargestInt8;
  return scale > kSmallestScale ? scale : kSmallestScale;
}

// To nearest, ties to even, for |x| < 2^22: the sum has no bits left for a fraction. 0 for NaN.
std::int8_t Round(float x) noexcept {
  constexpr float kWhole = 0x1.8p23F;
  if (x != x) return 0;
  return static_cast<std::int8_t>((x + kWhole) - kWhole);
}

std::size_t InputRowBytes(std::size_t k) noexcept { return Groups(k) * sizeof(Input); }

template <bool kRotated>
void PrepareInput(const float* x, std::size_t stride, std::size_t rows, std::size_t k,
                  void* prepared, std::size_t prepared_stride) noexcept {
  for (std::size_t r = 0; r < rows; ++r) {
    auto* row = static_cast<unsigned char*>(prepared) + r * prepared_stride;
    auto* to = reinterpret_cast<Input*>(row);
    for (std::size_t first = 0; first < k; first += kGroup, ++to) {
      const std::size_t n = k - first < kGroup ? k - first : kGroup;
      float values[kGroup];
      LoadGroup<kRotated>(x + r * stride + first, n, 1.0F, values);
      to->scale = Scale(values, n);
      const float inverse = 1.0F / to->scale;
      for (std::size_t i = 0; i < n; ++i) to->q[i] = Round(values[i] * inverse);
    }
  }
}

}  // namespace whole
}  // namespace
}  // namespace slimformer::kernels
