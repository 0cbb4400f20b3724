// int8 weights: a group is [kPanelWidth] scales (bfloat16, as Vector::LoadBf16Pairs
// reads them) before steps of [kPanelWidth][kPerStep] bytes. To be included after the tier's
// vector-inl.h.
//
// Adding up a group takes a conversion, a multiplication by the scale of w and a multiply-add by
// that of x: beside 48 dot products of 4 inputs, 2 of 50 multiplications.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/quantise-inl.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {

template <class OneDot>
struct Int8Weights {
  using Dot = OneDot;
  using I = typename Dot::I;
  static constexpr std::size_t kParts = 1;
  static constexpr std::size_t kScaleBytes = kPanelWidth * sizeof(std::uint16_t);
  static constexpr std::size_t kStepBytes = kPanelWidth * Dot::kPerStep;

  static I Start(const typename Dot::Facts& x) noexcept { return Dot::Start(x); }
  static void Load(const std::byte* step, I& low, I& high) noexcept {
    low = Dot::LoadInt8(step);
    high = Dot::LoadInt8(step + kStepBytes / 2);
  }

  template <std::size_t>
  static void LoadScales(const std::byte* scales, Vector::F (&scale)[2]) noexcept {
    Vector::LoadBf16Pairs(reinterpret_cast<const std::uint16_t*>(scales), scale[0], scale[1]);
  }

  // What a group adds beside its dot products: nothing.
  struct Minima {
    explicit Minima(const std::byte*) noexcept {}
    void Add(const typename Dot::Facts&, Vector::F (&)[2]) const noexcept {}
  };

  static void Quantise(const float* w, std::size_t n, std::size_t output, std::uint8_t* scales,
                       std::int16_t* q) noexcept {
    Vector::F v[kGroupVectors<Dot::kGroup>];
    LoadGroup(w, n, v);
    const std::uint16_t scale_bits = RoundUpToBf16(ScaleOf(v));
    __builtin_memcpy(scales + Slot(output), &scale_bits, sizeof(scale_bits));
    std::int32_t sums[1];
    QuantiseGroup(v, FloatFromBf16(scale_bits), q, sums);
  }
  static void Put(std::uint8_t* step, std::size_t output, std::size_t of_step, int q) noexcept {
    step[output * Dot::kPerStep + of_step] = Dot::Encode(q);
  }
  static int Get(const std::uint8_t* step, std::size_t output, std::size_t of_step) noexcept {
    return Dot::Decode(step[output * Dot::kPerStep + of_step]);
  }
  static float Value(const std::uint8_t* scales, std::size_t output, std::size_t, int q) noexcept {
    std::uint16_t scale_bits = 0;
    __builtin_memcpy(&scale_bits, scales + Slot(output), sizeof(scale_bits));
    return static_cast<float>(q) * FloatFromBf16(scale_bits);
  }

 private:
  // Where the scale of an output lies.
  static std::size_t Slot(std::size_t output) noexcept {
    return sizeof(std::uint16_t) * (2 * (output % Vector::kLanes) + output / Vector::kLanes);
  }
  // The smallest bfloat16 that is not below x > 0.
  static std::uint16_t RoundUpToBf16(float x) noexcept {
    return static_cast<std::uint16_t>((__builtin_bit_cast(std::uint32_t, x) + 0xffffU) >> 16);
  }
};

}  // namespace
}  // namespace slimformer::kernels
