// int4 weights: a group is a scale and a minimum for every output, interleaved as
// Vector::LoadBf16Pairs reads them, before steps of [kLanes][kPerStep] bytes. The low four bits of
// a byte are a weight of output i, the high ones of output kLanes + i, so that widening both takes
// a mask and a shift. To be included after the tier's vector-inl.h.
//
// Weights are 0 to 15, as unsigned bytes or int16: no offset is needed. The minimum times the sum
// of x over the group is the same product for all of them, one multiply-add more. Beside 8 dot
// products of 4 inputs, adding up a group takes 3 of 11 multiplications.
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
  static_assert(Dot::kGroup == kInt4Group);
  static constexpr std::size_t kScaleBytes = kPanelWidth * 2 * sizeof(std::uint16_t);
  static constexpr std::size_t kStepBytes = kPanelWidth * Dot::kPerStep / 2;

  static I Start(const typename Dot::Input&) noexcept { return Vector::ZeroInt(); }
  static void Load(const std::byte* step, I& low, I& high) noexcept {
    Dot::LoadInt4(step, low, high);
  }

  explicit Int4Weights(const std::byte* scales) noexcept {
    const auto* pairs = reinterpret_cast<const std::uint16_t*>(scales);
    Vector::LoadBf16Pairs(pairs, scale[0], min[0]);
    Vector::LoadBf16Pairs(pairs + kPanelWidth, scale[1], min[1]);
  }
  void Add(const typename Dot::Input& x, const I (&dots)[2], Vector::F (&sums)[2]) const noexcept {
    const Vector::F x_scale = Vector::Set(x.scale);
    const Vector::F x_sum = Vector::Set(x.sum);
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      const Vector::F scaled = Vector::Mul(Vector::ToFloat(dots[half]), scale[half]);
      sums[half] = Vector::MulAdd(scaled, x_scale, sums[half]);
      sums[half] = Vector::MulAdd(min[half], x_sum, sums[half]);
    }
  }

  static void Quantise(const float* w, std::size_t n, std::size_t output, std::uint8_t* scales,
                       std::int16_t* q) noexcept {
    const Int4Search search(w, n);
    const Int4Group& found = search.best();
    __builtin_memcpy(scales + Slot(output), &found.scale, sizeof(found.scale));
    __builtin_memcpy(scales + Slot(output) + sizeof(found.scale), &found.min, sizeof(found.min));
    for (std::size_t i = 0; i < Dot::kGroup; ++i) q[i] = i < n ? found.q[i] : std::int16_t{0};
  }
  static void Put(std::uint8_t* step, std::size_t output, std::size_t of_step, int q) noexcept {
    std::uint8_t& byte = step[output % Vector::kLanes * Dot::kPerStep + of_step];
    byte = static_cast<std::uint8_t>(byte | q << Shift(output));
  }
  static int Get(const std::uint8_t* step, std::size_t output, std::size_t of_step) noexcept {
    const std::uint8_t byte = step[output % Vector::kLanes * Dot::kPerStep + of_step];
    return (byte >> Shift(output)) & 15;
  }
  static float Value(const std::uint8_t* scales, std::size_t output, int q) noexcept {
    std::uint16_t pair[2];
    __builtin_memcpy(pair, scales + Slot(output), sizeof(pair));
    return static_cast<float>(q) * FloatFromBf16(pair[0]) + FloatFromBf16(pair[1]);
  }

  Vector::F scale[2];
  Vector::F min[2];

 private:
  // Where the scale of an output lies; its minimum follows.
  static std::size_t Slot(std::size_t output) noexcept {
    return output * 2 * sizeof(std::uint16_t);
  }
  static int Shift(std::size_t output) noexcept { return output < Vector::kLanes ? 0 : 4; }
};

}  // namespace
}  // namespace slimformer::kernels
