// int4 weights: a group is scales [kPanelWidth][kInt4Parts], minima likewise, and steps of
// [kLanes][kPerStep] bytes. The low four bits of a byte are a weight of output i, the high ones of
// output kLanes + i, so that widening both takes a mask and a shift. To be included after the
// tier's vector-inl.h.
//
// Weights are 0 to 15, as unsigned bytes or int16: no offset is needed. The minimum times the sum
// of x over the part is the same product for all of them. Beside 16 dot products of 4 inputs,
// adding up a group takes one multiplication by the scales of each part, one by that of x, and as
// many for the minima as the group's dots say: 4 of 20 multiplications with dot products of
// bfloat16, 5 of 21 without.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/int4_search.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {

template <class OneDot>
struct Int4Weights {
  using Dot = OneDot;
  using I = typename Dot::I;
  static_assert(Dot::kGroup == kInt4Inputs && kInt4Parts == 2);
  static constexpr std::size_t kParts = kInt4Parts;
  static constexpr std::size_t kMinimaAt = kPanelWidth * kParts * sizeof(std::uint16_t);
  static constexpr std::size_t kScaleBytes = 2 * kMinimaAt;
  static constexpr std::size_t kStepBytes = kPanelWidth * Dot::kPerStep / 2;

  static I Start(const typename Dot::Facts&) noexcept { return Vector::ZeroInt(); }
  static void Load(const std::byte* step, I& low, I& high) noexcept {
    Dot::LoadInt4(step, low, high);
  }

  template <std::size_t kPart>
  static void LoadScales(const std::byte* scales, Vector::F (&scale)[2]) noexcept {
    const auto* pairs = reinterpret_cast<const std::uint16_t*>(scales);
    Vector::F parts[2][2];
    Vector::LoadBf16Pairs(pairs, parts[0][0], parts[0][1]);
    Vector::LoadBf16Pairs(pairs + kPanelWidth, parts[1][0], parts[1][1]);
    scale[0] = parts[0][kPart];
    scale[1] = parts[1][kPart];
  }

  // The minima of a group.
  struct Minima {
    explicit Minima(const std::byte* scales) noexcept
        : low(scales + kMinimaAt), high(scales + kMinimaAt + kMinimaAt / 2) {}
    void Add(const typename Dot::Facts& x, Vector::F (&sums)[2]) const noexcept {
      sums[0] = low.AddTo(sums[0], x.sums);
      sums[1] = high.AddTo(sums[1], x.sums);
    }
    typename Dot::Sums::Factors low;
    typename Dot::Sums::Factors high;
  };

  static void Quantise(const float* w, std::size_t n, std::size_t output, std::uint8_t* scales,
                       std::int16_t* q) noexcept {
    for (std::size_t i = 0; i < Dot::kGroup; ++i) q[i] = 0;
    for (std::size_t at = 0; at < n; at += kInt4Group) {
      const std::size_t n_part = n - at < kInt4Group ? n - at : kInt4Group;
      const Int4Search search(w + at, n_part);
      const Int4Group& found = search.best();
      std::uint8_t* scale = scales + Slot(output, at);
      __builtin_memcpy(scale, &found.scale, sizeof(found.scale));
      __builtin_memcpy(scale + kMinimaAt, &found.min, sizeof(found.min));
      for (std::size_t i = 0; i < n_part; ++i) q[at + i] = found.q[i];
    }
  }
  static void Put(std::uint8_t* step, std::size_t output, std::size_t of_step, int q) noexcept {
    std::uint8_t& byte = step[output % Vector::kLanes * Dot::kPerStep + of_step];
    byte = static_cast<std::uint8_t>(byte | q << Shift(output));
  }
  static int Get(const std::uint8_t* step, std::size_t output, std::size_t of_step) noexcept {
    const std::uint8_t byte = step[output % Vector::kLanes * Dot::kPerStep + of_step];
    return (byte >> Shift(output)) & 15;
  }
  static float Value(const std::uint8_t* scales, std::size_t output, std::size_t input,
                     int q) noexcept {
    std::uint16_t scale = 0;
    std::uint16_t min = 0;
    __builtin_memcpy(&scale, scales + Slot(output, input), sizeof(scale));
    __builtin_memcpy(&min, scales + Slot(output, input) + kMinimaAt, sizeof(min));
    return static_cast<float>(q) * FloatFromBf16(scale) + FloatFromBf16(min);
  }

 private:
  // Where the scale of an output and an input of the group lies; its minimum is kMinimaAt behind.
  static std::size_t Slot(std::size_t output, std::size_t input) noexcept {
    return (output * kParts + input / kInt4Group) * sizeof(std::uint16_t);
  }
  static int Shift(std::size_t output) noexcept { return output < Vector::kLanes ? 0 : 4; }
};

}  // namespace
}  // namespace slimformer::kernels
