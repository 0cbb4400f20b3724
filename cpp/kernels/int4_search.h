// Finding the scale and the minimum that lose least of a group of int4 weights: plain code that
// every tier compiles for itself.
//
// w = scale q + min, 0 <= q <= 15, both of them bfloat16. For given q the best scale and minimum
// are a linear regression, for given scale and minimum the best q is a rounding: taking turns
// from the range of the values, and once more from a narrower one that gives outliers up, ends
// in a minimum of the squared error, 15 % below that of the range alone for normal values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {

struct Int4Group {
  std::uint16_t scale = 0;  // bfloat16
  std::uint16_t min = 0;    // bfloat16
  std::int16_t q[kInt4Group] = {};
};

class Int4Search {
 public:
  // w [n], 1 <= n <= kInt4Group. A value that is not finite makes the minimum NaN.
  Int4Search(const float* w, std::size_t n) noexcept {
    float high = lowest_ = w[0];
    bool finite = true;
    for (std::size_t i = 0; i < n; ++i) {
      if (!(__builtin_fabsf(w[i]) < __builtin_inff())) finite = false;
      if (w[i] < lowest_) lowest_ = w[i];
      if (w[i] > high) high = w[i];
    }
    range_ = high - lowest_;
    if (!finite || !(range_ < __builtin_inff())) {
      best_.min = Bf16FromFloat(__builtin_nanf(""));
      return;
    }
    best_.min = Bf16FromFloat(lowest_);
    if (range_ < kSmallestRange) return;  // one value, for all that float32 sums can tell
    // A short group is filled up with its own values.
    const float inverse = 1.0F / range_;
    for (std::size_t i = 0; i < kInt4Group; ++i) {
      unit_[i / kLanes][i % kLanes] = (w[i % n] - lowest_) * inverse;
    }
    for (const Vector4& unit : unit_) sum_ += unit;
    constexpr float kWidths[] = {1.0F, 0.85F};
    for (const float width : kWidths) Descend({width / kMost, (1.0F - width) / 2.0F});
  }

  const Int4Group& best() const noexcept { return best_; }

 private:
  static constexpr float kMost = 15.0F;
  static constexpr float kSmallestRange = 0x1p-120F;
  static constexpr int kTurns = 3;

  // Four lanes, as the compiler's own vectors: sums keep their order, and every processor that
  // the code runs on has registers for them.
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kVectors = kInt4Group / kLanes;
  typedef float Vector4 __attribute__((vector_size(kLanes * sizeof(float))));

  // In units of the range, from the lowest value on.
  struct Line {
    float scale;
    float min;
  };

  static float Total(const Vector4& v) noexcept { return v[0] + v[1] + (v[2] + v[3]); }

  void Descend(Line line) noexcept {
    for (int turn = 0; turn < kTurns; ++turn) {
      Round(line);
      line = Regress();
      if (!(line.scale > 0.0F)) return;
      Try(line);
    }
  }

  // q = the nearest on the line.
  void Round(Line line) noexcept {
    constexpr float kWhole = 0x1.8p23F;  // a sum with it has no bits left for a fraction
    const Vector4 lowest = {};
    const Vector4 most = lowest + kMost;
    const float inverse = 1.0F / line.scale;
    for (std::size_t i = 0; i < kVectors; ++i) {
      Vector4 x = (unit_[i] - line.min) * inverse;
      x = x > lowest ? x : lowest;
      x = x < most ? x : most;
      q_[i] = (x + kWhole) - kWhole;
    }
  }

  Line Regress() const noexcept {
    constexpr float kCount = kInt4Group;
    Vector4 of_q = {};
    Vector4 of_squares = {};
    Vector4 of_products = {};
    for (std::size_t i = 0; i < kVectors; ++i) {
      of_q += q_[i];
      of_squares += q_[i] * q_[i];
      of_products += q_[i] * unit_[i];
    }
    const float q = Total(of_q);
    const float unit = Total(sum_);
    const float determinant = kCount * Total(of_squares) - q * q;
    if (!(determinant > 0.0F)) return {0.0F, 0.0F};
    const float scale = (kCount * Total(of_products) - q * unit) / determinant;
    return {scale, (unit - scale * q) / kCount};
  }

  // Keeps the line, rounded, if it is the best so far.
  void Try(Line line) noexcept {
    const std::uint16_t scale = Bf16FromFloat(line.scale * range_);
    const std::uint16_t min = Bf16FromFloat(line.min * range_ + lowest_);
    const Line rounded = {FloatFromBf16(scale) / range_, (FloatFromBf16(min) - lowest_) / range_};
    Round(rounded);
    Vector4 of_errors = {};
    for (std::size_t i = 0; i < kVectors; ++i) {
      const Vector4 off = rounded.scale * q_[i] + (rounded.min - unit_[i]);
      of_errors += off * off;
    }
    const float error = Total(of_errors);
    if (!(error < error_)) return;
    error_ = error;
    best_.scale = scale;
    best_.min = min;
    for (std::size_t i = 0; i < kInt4Group; ++i) {
      best_.q[i] = static_cast<std::int16_t>(q_[i / kLanes][i % kLanes]);
    }
  }

  float lowest_;
  float range_;
  Vector4 unit_[kVectors];
  Vector4 sum_ = {};  // of unit_
  Vector4 q_[kVectors];
  float error_ = __builtin_inff();
  Int4Group best_;
};

}  // namespace
}  // namespace slimformer::kernels
