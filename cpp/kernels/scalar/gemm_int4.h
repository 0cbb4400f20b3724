// The scalar tier's product of int4 weights, as quantisation.h defines it and in that order.
//
// A panel of 16 outputs is a row of groups, each [16] scales and minima (bfloat16) and
// [inputs / 2][16] bytes, the earlier input in the low four bits; only the last group may have
// fewer than kGroup inputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/int4_search.h"
#include "kernels/kernel_table.h"
#include "kernels/scalar/whole_input.h"

namespace slimformer::kernels {
namespace {
namespace int4 {

using whole::Groups;
using whole::kWidth;

struct Scale {
  std::uint16_t scale;
  std::uint16_t min;
};

constexpr std::size_t kScaleBytes = kWidth * sizeof(Scale);
constexpr std::size_t kGroupBytes = kScaleBytes + kGroup / 2 * kWidth;

// Inputs of a group.
constexpr std::size_t Size(std::size_t k, std::size_t group) noexcept {
  const std::size_t left = k - group * kGroup;
  return left < kGroup ? left : kGroup;
}

std::size_t PanelBytes(std::size_t k) noexcept {
  return (Groups(k) * kScaleBytes + (k + 1) / 2 * kWidth + 63) / 64 * 64;
}

Scale ScaleOf(const unsigned char* group, std::size_t output) noexcept {
  Scale scale;
  __builtin_memcpy(&scale, group + output * sizeof(Scale), sizeof(Scale));
  return scale;
}

int Weight(const unsigned char* group, std::size_t i, std::size_t output) noexcept {
  return group[kScaleBytes + i / 2 * kWidth + output] >> i % 2 * 4 & 15;
}

void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  auto* bytes = static_cast<unsigned char*>(panel);
  __builtin_memset(bytes, 0, PanelBytes(k));
  for (std::size_t c = 0; c < outputs; ++c) {
    for (std::size_t g = 0; g < Groups(k); ++g) {
      const std::size_t n = Size(k, g);
      const Int4Search search(w + c * stride + g * kGroup, n);
      const Int4Group& found = search.best();
      unsigned char* group = bytes + g * kGroupBytes;
      const Scale scale = {found.scale, found.min};
      __builtin_memcpy(group + c * sizeof(scale), &scale, sizeof(scale));
      for (std::size_t i = 0; i < n; ++i) {
        unsigned char& pair = group[kScaleBytes + i / 2 * kWidth + c];
        pair = static_cast<unsigned char>(pair | found.q[i] << i % 2 * 4);
      }
    }
  }
}

void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  for (std::size_t i = 0; i < k; ++i) {
    const auto* group = static_cast<const unsigned char*>(panel) + i / kGroup * kGroupBytes;
    const Scale scale = ScaleOf(group, output);
    const auto q = static_cast<float>(Weight(group, i % kGroup, output));
    w[i] = q * FloatFromBf16(scale.scale) + FloatFromBf16(scale.min);
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
      std::int32_t total = 0;
      for (std::size_t i = 0; i < Size(k, g); ++i) {
        total += input->q[i];
        for (std::size_t c = 0; c < kWidth; ++c) dots[c] += input->q[i] * Weight(group, i, c);
      }
      const float x_sum = static_cast<float>(total) * input->scale;
      for (std::size_t c = 0; c < kWidth; ++c) {
        const Scale scale = ScaleOf(group, c);
        sums[c] += static_cast<float>(dots[c]) * FloatFromBf16(scale.scale) * input->scale;
        sums[c] += FloatFromBf16(scale.min) * x_sum;
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
          .prepare_input = &whole::PrepareInput<false>,
          .multiply = &Multiply};
}

}  // namespace int4
}  // namespace
}  // namespace slimformer::kernels
