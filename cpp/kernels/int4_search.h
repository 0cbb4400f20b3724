// Finding the scale and the minimum that lose least of a part of int4 weights: plain code that
// every tier compiles for itself.
//
// w = scale q + min, 0 <= q <= 15, both of them bfloat16. For given q the best scale and minimum
// are a linear regression, for given scale and minimum the best q is a rounding: taking turns
// from the range of the values, and once more from a narrower one that gives outliers up, ends
// in a minimum of the squared error, 4 to 8 % below that of the range alone for normal values.
// Sums are kept in lanes so that a compiler may use vectors without reordering them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {

struct Int4Part {
  std::uint16_t scale = 0;  // bfloat16
  std::uint16_t min = 0;    // bfloat16
  std::int16_t q[kInt4Part] = {};
};

class Int4Search {
 public:
  // w [n], 1 <= n <= kInt4Part. A value that is not finite makes the minimum NaN.
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
    // A short part is filled up with its own values.
    for (std::size_t i = 0; i < kInt4Part; ++i) unit_[i] = (w[i % n] - lowest_) / range_;
    constexpr float kWidths[] = {1.0F, 0.85F};
    for (const float width : kWidths) Descend({width / kMost, (1.0F - width) / 2.0F});
  }

  const Int4Part& best() const noexcept { return best_; }

 private:
  static constexpr float kMost = 15.0F;
  static constexpr float kSmallestRange = 0x1p-120F;
  static constexpr std::size_t kLanes = 8;
  static constexpr int kTurns = 3;

  // In units of the range, from the lowest value on.
  struct Line {
    float scale;
    float min;
  };

  struct Sum {
    float lanes[kLanes] = {};
    float Total() const noexcept {
      float total = 0.0F;
      for (const float lane : lanes) total += lane;
      return total;
    }
  };

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
    const float inverse = 1.0F / line.scale;
    for (std::size_t i = 0; i < kInt4Part; ++i) {
      float x = (unit_[i] - line.min) * inverse;
      x = x > 0.0F ? x : 0.0F;
      x = x < kMost ? x : kMost;
      q_[i] = (x + kWhole) - kWhole;
    }
  }

  Line Regress() const noexcept {
    constexpr float kCount = kInt4Part;
    Sum of_q;
    Sum of_unit;
    Sum of_squares;
    Sum of_products;
    for (std::size_t i = 0; i < kInt4Part; i += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const float q = q_[i + lane];
        const float unit = unit_[i + lane];
        of_q.lanes[lane] += q;
        of_unit.lanes[lane] += unit;
        of_squares.lanes[lane] += q * q;
        of_products.lanes[lane] += q * unit;
      }
    }
    const float q = of_q.Total();
    const float unit = of_unit.Total();
    const float determinant = kCount * of_squares.Total() - q * q;
    if (!(determinant > 0.0F)) return {0.0F, 0.0F};
    const float scale = (kCount * of_products.Total() - q * unit) / determinant;
    return {scale, (unit - scale * q) / kCount};
  }

  // Keeps the line, rounded, if it is the best so far.
  void Try(Line line) noexcept {
    const std::uint16_t scale = Bf16FromFloat(line.scale * range_);
    const std::uint16_t min = Bf16FromFloat(line.min * range_ + lowest_);
    const Line rounded = {FloatFromBf16(scale) / range_, (FloatFromBf16(min) - lowest_) / range_};
    Round(rounded);
    Sum of_errors;
    for (std::size_t i = 0; i < kInt4Part; i += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const float off = rounded.scale * q_[i + lane] + (rounded.min - unit_[i + lane]);
        of_errors.lanes[lane] += off * off;
      }
    }
    const float error = of_errors.Total();
    if (!(error < error_)) return;
    error_ = error;
    best_.scale = scale;
    best_.min = min;
    for (std::size_t i = 0; i < kInt4Part; ++i) best_.q[i] = static_cast<std::int16_t>(q_[i]);
  }

  float lowest_;
  float range_;
  float unit_[kInt4Part];
  float q_[kInt4Part];
  float error_ = __builtin_inff();
  Int4Part best_;
};

}  // namespace
}  // namespace slimformer::kernels
