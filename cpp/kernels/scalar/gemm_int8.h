// The scalar tier's product of int8 weights, as quantisation.h defines it and in that order.
//
// A panel of 16 outputs is a row of groups, each [16] scales (bfloat16) and [inputs][16] weights;
// only the last group may have fewer than kGroup inputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/kernel_table.h"
#include "kernels/scalar/whole_input.h"

namespace slimformer::kernels {
namespace {
namespace int8 {

using whole::Groups;
using whole::kWidth;

constexpr std::size_t kScaleBytes = kWidth * sizeof(std::uint16_t);
constexpr std::size_t kGroupBytes = kScaleBytes + kGroup * kWidth;

// Inputs of a group.
constexpr std::size_t Size(std::size_t k, std::size_t group) noexcept {
  const std::size_t left = k - group * kGroup;
  return left < kGroup ? left : kGroup;
}

std::size_t PanelBytes(std::size_t k) noexcept {
  return (Groups(k) * kScaleBytes + k * kWidth + 63) / 64 * 64;
}

void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  auto* bytes = static_cast<unsigned char*>(panel);
  __builtin_memset(bytes, 0, PanelBytes(k));
  for (std::size_t c = 0; c < outputs; ++c) {
    for (std::size_t group = 0; group < Groups(k); ++group) {
      const std::size_t n = Size(k, group);
      float values[kGroup];
      whole::LoadGroup<true>(w + c * stride + group * kGroup, n, 1.0F / kGroup, values);
      unsigned char* to = bytes + group * kGroupBytes;
      const auto bits = __builtin_bit_cast(std::uint32_t, whole::Scale(values, n));
      const auto scale = static_cast<std::uint16_t>((bits + 0xffffU) >> 16);  // rounded up
      __builtin_memcpy(to + c * sizeof(scale), &scale, sizeof(scale));
      const float inverse = 1.0F / FloatFromBf16(scale);
      for (std::size_t i = 0; i < n; ++i) {
        to[kScaleBytes + i * kWidth + c] =
            static_cast<unsigned char>(whole::Round(values[i] * inverse));
      }
    }
  }
}

float ScaleOf(const unsigned char* group, std::size_t output) noexcept {
  std::uint16_t scale = 0;
  __builtin_memcpy(&scale, group + output * sizeof(scale), sizeof(scale));
  return FloatFromBf16(scale);
}

std::int8_t Weight(const unsigned char* group, std::size_t i, std::size_t output) noexcept {
  return static_cast<std::int8_t>(group[kScaleBytes + i * kWidth + output]);
}

void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  for (std::size_t i = 0; i < k; ++i) {
    const auto* group = static_cast<const unsigned char*>(panel) + i / kGroup * kGroupBytes;
    w[i] = static_cast<float>(Weight(group, i % kGroup, output)) * ScaleOf(group, output);
    if ((i + 1) % kGroup == 0) whole::Rotate(w + i + 1 - kGroup);
  }
}

void Multiply(const void* x, std::size_t, std::size_t rows, const void* panel, std::size_t k,
              float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const auto* input = static_cast<const whole::Input*>(x);
  for (std::size_t r = 0; r < rows; ++r) {
    float sums[kWidth] = {};
    for (std::size_t g = 0; g < Groups(k); ++g, ++input) {
      const auto* group = static_cast<const unsigned char*>(panel) + g * kGroupBytes;
      std::int32_t dots[kWidth] = {};
      for (std::size_t i = 0; i < Size(k, g); ++i) {
        for (std::size_t c = 0; c < kWidth; ++c) dots[c] += input->q[i] * Weight(group, i, c);
      }
      for (std::size_t c = 0; c < kWidth; ++c) {
        sums[c] += static_cast<float>(dots[c]) * ScaleOf(group, c) * input->scale;
      }
    }
    for (std::size_t c = 0; c < outputs; ++c) {
      float& to = y[r * y_stride + c];
      to = accumulate ? to + sums[c] : sums[c];
    }
  }
}

constexpr GemmKernel MakeGemm() noexcept {
  return {.panel_width = kWidth,
          .tile_rows = 1,
          .panel_bytes = &PanelBytes,
          .pack_panel = &PackPanel,
          .unpack_row = &UnpackRow,
          .input_row_bytes = &whole::InputRowBytes,
          .prepare_input = &whole::PrepareInput<true>,
          .multiply = &Multiply};
}

}  // namespace int8
}  // namespace
}  // namespace slimformer::kernels
