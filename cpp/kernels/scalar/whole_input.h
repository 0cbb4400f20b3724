// The scalar tier's groups of whole numbers, as quantisation.h defines them, and the activations
// of int8 and int4 products.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {
namespace whole {

constexpr std::size_t kWidth = 16;  // of a panel

template <std::size_t kGroup>
struct Input {
  float scale;
  std::int8_t q[kGroup];
};

template <std::size_t kGroup>
constexpr std::size_t Groups(std::size_t k) noexcept {
  return (k + kGroup - 1) / kGroup;
}

// v [n] becomes the transforms of its whole blocks, times factor, and of what is left itself.
void Rotate(float* v, std::size_t n, float factor) noexcept {
  for (; n >= kRotatedBlock; n -= kRotatedBlock, v += kRotatedBlock) {
    for (std::size_t stride = kRotatedBlock / 2; stride > 0; stride /= 2) {
      for (std::size_t i = 0; i < kRotatedBlock; ++i) {
        if ((i & stride) != 0) continue;
        const float low = v[i];
        const float high = v[i + stride];
        v[i] = low + high;
        v[i + stride] = low - high;
      }
    }
    for (std::size_t i = 0; i < kRotatedBlock; ++i) v[i] *= factor;
  }
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

template <std::size_t kGroup>
std::size_t InputRowBytes(std::size_t k) noexcept {
  return Groups<kGroup>(k) * sizeof(Input<kGroup>);
}

template <std::size_t kGroup, bool kRotated>
void PrepareInput(const float* x, std::size_t stride, std::size_t rows, const InputColumns& columns,
                  void* prepared) noexcept {
  for (std::size_t r = 0; r < rows; ++r) {
    Input<kGroup>* to = static_cast<Input<kGroup>*>(prepared) + r * Groups<kGroup>(columns.of) +
                        columns.first / kGroup;
    for (std::size_t first = 0; first < columns.count; first += kGroup, ++to) {
      const std::size_t left = columns.count - first;
      const std::size_t n = left < kGroup ? left : kGroup;
      float values[kGroup];
      for (std::size_t i = 0; i < n; ++i) values[i] = x[r * stride + first + i];
      if (kRotated) Rotate(values, n, 1.0F);
      to->scale = Scale(values, n);
      const float inverse = 1.0F / to->scale;
      for (std::size_t i = 0; i < n; ++i) to->q[i] = Round(values[i] * inverse);
    }
  }
}

}  // namespace whole
}  // namespace
}  // namespace slimformer::kernels
