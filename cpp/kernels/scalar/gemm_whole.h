// The scalar tier's products of int8 and int4 weights, as quantisation.h defines them and in that
// order. What differs between the two is a Weights policy.
//
// A panel of 16 outputs is a row of groups, each the scales of its outputs and then its weights;
// only the last group may have fewer inputs. A group of int4 has parts with scales of their own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/int4_search.h"
#include "kernels/kernel_table.h"
#include "kernels/scalar/whole_input.h"

namespace slimformer::kernels {
namespace {
namespace whole {

// [16] scales (bfloat16), [inputs][16] weights.
template <bool kRotatedGroups>
struct Int8Weights {
  static constexpr std::size_t kGroup = kInt8Group;
  static constexpr std::size_t kPart = kGroup;
  static constexpr bool kRotated = kRotatedGroups;
  static constexpr std::size_t kScaleBytes = kWidth * sizeof(std::uint16_t);
  static constexpr std::size_t kWeightsPerByte = 1;

  static void Quantise(const float* w, std::size_t n, std::size_t output, unsigned char* group) {
    const auto bits = __builtin_bit_cast(std::uint32_t, whole::Scale(w, n));
    const auto scale = static_cast<std::uint16_t>((bits + 0xffffU) >> 16);  // rounded up
    __builtin_memcpy(group + output * sizeof(scale), &scale, sizeof(scale));
    const float inverse = 1.0F / FloatFromBf16(scale);
    for (std::size_t i = 0; i < n; ++i) {
      group[kScaleBytes + i * kWidth + output] = static_cast<unsigned char>(Round(w[i] * inverse));
    }
  }
  static int Weight(const unsigned char* group, std::size_t i, std::size_t output) {
    return static_cast<std::int8_t>(group[kScaleBytes + i * kWidth + output]);
  }
  static float Value(const unsigned char* group, std::size_t, std::size_t output, int q) {
    return static_cast<float>(q) * ScaleOf(group, output);
  }
  static void Add(const unsigned char* group, std::size_t, std::size_t output, std::int32_t dot,
                  std::int32_t, float x_scale, float& sum) {
    sum += static_cast<float>(dot) * ScaleOf(group, output) * x_scale;
  }

 private:
  static float ScaleOf(const unsigned char* group, std::size_t output) {
    std::uint16_t scale = 0;
    __builtin_memcpy(&scale, group + output * sizeof(scale), sizeof(scale));
    return FloatFromBf16(scale);
  }
};

// [parts][16] scales and minima (bfloat16), [inputs / 2][16] bytes, the earlier input in the low
// four bits.
struct Int4Weights {
  static constexpr std::size_t kGroup = kInt4Inputs;
  static constexpr std::size_t kPart = kInt4Group;
  static constexpr bool kRotated = false;
  static constexpr std::size_t kScaleBytes = kInt4Parts * kWidth * 2 * sizeof(std::uint16_t);
  static constexpr std::size_t kWeightsPerByte = 2;

  static void Quantise(const float* w, std::size_t n, std::size_t output, unsigned char* group) {
    for (std::size_t first = 0; first < n; first += kPart) {
      const std::size_t of_part = n - first < kPart ? n - first : kPart;
      const Int4Search search(w + first, of_part);
      const Int4Group& found = search.best();
      const Line line = {found.scale, found.min};
      __builtin_memcpy(group + Slot(first / kPart, output), &line, sizeof(line));
      for (std::size_t i = 0; i < of_part; ++i) {
        unsigned char& pair = group[kScaleBytes + (first + i) / 2 * kWidth + output];
        pair = static_cast<unsigned char>(pair | found.q[i] << i % 2 * 4);
      }
    }
  }
  static int Weight(const unsigned char* group, std::size_t i, std::size_t output) {
    return group[kScaleBytes + i / 2 * kWidth + output] >> i % 2 * 4 & 15;
  }
  static float Value(const unsigned char* group, std::size_t part, std::size_t output, int q) {
    const Line line = LineOf(group, part, output);
    return static_cast<float>(q) * FloatFromBf16(line.scale) + FloatFromBf16(line.min);
  }
  static void Add(const unsigned char* group, std::size_t part, std::size_t output,
                  std::int32_t dot, std::int32_t x_sum, float x_scale, float& sum) {
    const Line line = LineOf(group, part, output);
    sum += static_cast<float>(dot) * FloatFromBf16(line.scale) * x_scale;
    sum += FloatFromBf16(line.min) * (static_cast<float>(x_sum) * x_scale);
  }

 private:
  struct Line {
    std::uint16_t scale;
    std::uint16_t min;
  };
  static std::size_t Slot(std::size_t part, std::size_t output) {
    return (part * kWidth + output) * sizeof(Line);
  }
  static Line LineOf(const unsigned char* group, std::size_t part, std::size_t output) {
    Line line;
    __builtin_memcpy(&line, group + Slot(part, output), sizeof(line));
    return line;
  }
};

template <class Weights>
constexpr std::size_t GroupBytes =
    Weights::kScaleBytes + Weights::kGroup / Weights::kWeightsPerByte * kWidth;

// Inputs of a group.
template <class Weights>
constexpr std::size_t Size(std::size_t k, std::size_t group) noexcept {
  const std::size_t left = k - group * Weights::kGroup;
  return left < Weights::kGroup ? left : Weights::kGroup;
}

template <class Weights>
std::size_t PanelBytes(std::size_t k) noexcept {
  const std::size_t bytes = (k + Weights::kWeightsPerByte - 1) / Weights::kWeightsPerByte * kWidth;
  return (Groups<Weights::kGroup>(k) * Weights::kScaleBytes + bytes + 63) / 64 * 64;
}

template <class Weights>
void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  constexpr std::size_t kGroup = Weights::kGroup;
  auto* bytes = static_cast<unsigned char*>(panel);
  __builtin_memset(bytes, 0, PanelBytes<Weights>(k));
  for (std::size_t c = 0; c < outputs; ++c) {
    for (std::size_t group = 0; group < Groups<kGroup>(k); ++group) {
      const std::size_t n = Size<Weights>(k, group);
      float values[kGroup] = {};
      for (std::size_t i = 0; i < n; ++i) values[i] = w[c * stride + group * kGroup + i];
      if (Weights::kRotated) Rotate(values, n, 1.0F / kRotatedBlock);
      Weights::Quantise(values, n, c, bytes + group * GroupBytes<Weights>);
    }
  }
}

template <class Weights>
void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  constexpr std::size_t kGroup = Weights::kGroup;
  for (std::size_t i = 0; i < k; ++i) {
    const auto* group = static_cast<const unsigned char*>(panel) + i / kGroup * GroupBytes<Weights>;
    w[i] = Weights::Value(group, i % kGroup / Weights::kPart, output,
                          Weights::Weight(group, i % kGroup, output));
  }
  // Groups are whole blocks: those of a row lie one after another.
  if (Weights::kRotated) Rotate(w, k, 1.0F);
}

// sums [kWidth] += n inputs of a group times the same group of a panel.
template <class Weights>
void AddGroup(const Input<Weights::kGroup>& input, std::size_t n, const unsigned char* group,
              float* sums) noexcept {
  for (std::size_t part = 0; part * Weights::kPart < n; ++part) {
    std::int32_t dots[kWidth] = {};
    std::int32_t x_sum = 0;
    const std::size_t end = (part + 1) * Weights::kPart;
    for (std::size_t i = part * Weights::kPart; i < (end < n ? end : n); ++i) {
      x_sum += input.q[i];
      for (std::size_t c = 0; c < kWidth; ++c) dots[c] += input.q[i] * Weights::Weight(group, i, c);
    }
    for (std::size_t c = 0; c < kWidth; ++c) {
      Weights::Add(group, part, c, dots[c], x_sum, input.scale, sums[c]);
    }
  }
}

template <class Weights>
void Multiply(const void* x, std::size_t, std::size_t rows, const void* panel, std::size_t k,
              float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const auto* input = static_cast<const Input<Weights::kGroup>*>(x);
  for (std::size_t r = 0; r < rows; ++r) {
    float sums[kWidth] = {};
    for (std::size_t g = 0; g < Groups<Weights::kGroup>(k); ++g, ++input) {
      const auto* group = static_cast<const unsigned char*>(panel) + g * GroupBytes<Weights>;
      AddGroup<Weights>(*input, Size<Weights>(k, g), group, sums);
    }
    for (std::size_t c = 0; c < outputs; ++c) {
      float& to = y[r * y_stride + c];
      to = accumulate ? to + sums[c] : sums[c];
    }
  }
}

template <class Weights>
constexpr GemmKernel MakeGemm() noexcept {
  return {.panel_width = kWidth,
          .tile_rows = 1,
          .panel_bytes = &PanelBytes<Weights>,
          .pack_panel = &PackPanel<Weights>,
          .unpack_row = &UnpackRow<Weights>,
          .input_row_bytes = &InputRowBytes<Weights::kGroup>,
          .input_unit = Weights::kGroup,
          .prepare_input = &PrepareInput<Weights::kGroup, Weights::kRotated>,
          .multiply = &Multiply<Weights>};
}

}  // namespace whole
}  // namespace
}  // namespace slimformer::kernels
