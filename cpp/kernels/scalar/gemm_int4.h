// The scalar tier's product of int4 weights, as quantisation.h defines it and in that order.
//
// A panel of 16 outputs is a row of parts, each [16] scales and minima (bfloat16) and
// [inputs / 2][16] bytes, the earlier input in the low four bits; only the last part may have fewer
// than kInt4Part inputs.
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

using whole::kWidth;

struct Scale {
  std::uint16_t scale;
  std::uint16_t min;
};

constexpr std::size_t kScaleBytes = kWidth * sizeof(Scale);
constexpr std::size_t kPartBytes = kScaleBytes + kInt4Part / 2 * kWidth;

constexpr std::size_t Parts(std::size_t k) noexcept { return (k + kInt4Part - 1) / kInt4Part; }

// Inputs of a part.
constexpr std::size_t Size(std::size_t k, std::size_t part) noexcept {
  const std::size_t left = k - part * kInt4Part;
  return left < kInt4Part ? left : kInt4Part;
}

std::size_t PanelBytes(std::size_t k) noexcept {
  return (Parts(k) * kScaleBytes + (k + 1) / 2 * kWidth + 63) / 64 * 64;
}

Scale ScaleOf(const unsigned char* part, std::size_t output) noexcept {
  Scale scale;
  __builtin_memcpy(&scale, part + output * sizeof(Scale), sizeof(Scale));
  return scale;
}

int Weight(const unsigned char* part, std::size_t i, std::size_t output) noexcept {
  return part[kScaleBytes + i / 2 * kWidth + output] >> i % 2 * 4 & 15;
}

void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  auto* bytes = static_cast<unsigned char*>(panel);
  __builtin_memset(bytes, 0, PanelBytes(k));
  for (std::size_t c = 0; c < outputs; ++c) {
    float values[kGroup];
    for (std::size_t p = 0; p < Parts(k); ++p) {
      const std::size_t in_group = p * kInt4Part % kGroup;
      const std::size_t first = p * kInt4Part - in_group;
      if (in_group == 0) {
        const std::size_t of_group = k - first < kGroup ? k - first : kGroup;
        whole::LoadGroup(w + c * stride + first, of_group, 1.0F / kGroup, values);
      }
      const std::size_t n = Size(k, p);
      const Int4Search search(values + in_group, n);
      const Int4Part& found = search.best();
      unsigned char* part = bytes + p * kPartBytes;
      const Scale scale = {found.scale, found.min};
      __builtin_memcpy(part + c * sizeof(scale), &scale, sizeof(scale));
      for (std::size_t i = 0; i < n; ++i) {
        unsigned char& pair = part[kScaleBytes + i / 2 * kWidth + c];
        pair = static_cast<unsigned char>(pair | found.q[i] << i % 2 * 4);
      }
    }
  }
}

void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  for (std::size_t i = 0; i < k; ++i) {
    const auto* part = static_cast<const unsigned char*>(panel) + i / kInt4Part * kPartBytes;
    const Scale scale = ScaleOf(part, output);
    const auto q = static_cast<float>(Weight(part, i % kInt4Part, output));
    w[i] = q * FloatFromBf16(scale.scale) + FloatFromBf16(scale.min);
    if ((i + 1) % kGroup == 0) whole::Rotate(w + i + 1 - kGroup);
  }
}

void Multiply(const void* x, std::size_t, std::size_t rows, const void* panel, std::size_t k,
              float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const auto* input = static_cast<const whole::Input*>(x);
  for (std::size_t r = 0; r < rows; ++r, input += whole::Groups(k)) {
    float sums[kWidth] = {};
    for (std::size_t p = 0; p < Parts(k); ++p) {
      const auto* part = static_cast<const unsigned char*>(panel) + p * kPartBytes;
      const whole::Input& group = input[p * kInt4Part / kGroup];
      const std::int8_t* q = group.q + p * kInt4Part % kGroup;
      std::int32_t dots[kWidth] = {};
      std::int32_t total = 0;
      for (std::size_t i = 0; i < Size(k, p); ++i) {
        total += q[i];
        for (std::size_t c = 0; c < kWidth; ++c) dots[c] += q[i] * Weight(part, i, c);
      }
      const float x_sum = static_cast<float>(total) * group.scale;
      for (std::size_t c = 0; c < kWidth; ++c) {
        const Scale scale = ScaleOf(part, c);
        sums[c] += static_cast<float>(dots[c]) * FloatFromBf16(scale.scale) * group.scale;
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
          .prepare_input = &whole::PrepareInput,
          .multiply = &Multiply};
}

}  // namespace int4
}  // namespace
}  // namespace slimformer::kernels
