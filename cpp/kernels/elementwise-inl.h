// Kernels that pass over rows of float32 or bfloat16 once or twice. To be included after the
// tier's vector-inl.h.
//
// They are bound by the caches, so each is one load-compute-store loop; what matters is that sums
// have four accumulators, enough to cover the latency of an addition.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/each_vector-inl.h"
#include "kernels/exp-inl.h"
#include "kernels/quantise-inl.h"
#include "kernels/tanh-inl.h"

namespace slimformer::kernels {
namespace {

inline float SumOfSquares(const float* x, std::size_t n) noexcept {
  constexpr std::size_t kSums = 4;
  Vector::F sums[kSums] = {Vector::Zero(), Vector::Zero(), Vector::Zero(), Vector::Zero()};
  std::size_t i = 0;
  for (; i + kSums * Vector::kLanes <= n; i += kSums * Vector::kLanes) {
#pragma GCC unroll 4
    for (std::size_t s = 0; s < kSums; ++s) {
      const Vector::F value = Vector::Load(x + i + s * Vector::kLanes);
      sums[s] = Vector::MulAdd(value, value, sums[s]);
    }
  }
  ForEachVector(n - i, [&](std::size_t at, auto lanes) {
    const Vector::F value = lanes.Load(x + i + at);
    sums[0] = Vector::MulAdd(value, value, sums[0]);
  });
  return Vector::SumLanes(
      Vector::Add(Vector::Add(sums[0], sums[1]), Vector::Add(sums[2], sums[3])));
}

void RmsNorm(const float* x, const float* weight, float eps, std::size_t divisor, std::size_t n,
             float* y) noexcept {
  const float mean = SumOfSquares(x, n) / static_cast<float>(divisor);
  const Vector::F factor = Vector::Set(1.0F / __builtin_sqrtf(mean + eps));
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, Vector::Mul(Vector::Mul(lanes.Load(x + i), factor), lanes.Load(weight + i)));
  });
}

void Rope(float* x, const float* cosine, const float* sine, std::size_t pairs) noexcept {
  ForEachVector(pairs, [&](std::size_t i, auto lanes) {
    const Vector::F a = lanes.Load(x + i);
    const Vector::F b = lanes.Load(x + pairs + i);
    const Vector::F c = lanes.Load(cosine + i);
    const Vector::F s = lanes.Load(sine + i);
    lanes.Store(x + i, Vector::NegMulAdd(b, s, Vector::Mul(a, c)));
    lanes.Store(x + pairs + i, Vector::MulAdd(a, s, Vector::Mul(b, c)));
  });
}

inline float Sum(const float* x, std::size_t n) noexcept {
  Vector::F sum = Vector::Zero();
  ForEachVector(n, [&](std::size_t i, auto lanes) { sum = Vector::Add(sum, lanes.Load(x + i)); });
  return Vector::SumLanes(sum);
}

// The mean is taken off before anything is squared, and so is what its own rounding leaves.
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, std::size_t n,
               float* y) noexcept {
  const auto count = static_cast<float>(n);
  const Vector::F mean = Vector::Set(Sum(x, n) / count);
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, Vector::Sub(lanes.Load(x + i), mean));
  });
  const float rest = Sum(y, n) / count;
  const float variance = SumOfSquares(y, n) / count - rest * rest;
  const Vector::F factor = Vector::Set(1.0F / __builtin_sqrtf(variance + eps));
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    const Vector::F apart = Vector::Sub(lanes.Load(y + i), Vector::Set(rest));
    lanes.Store(y + i, Vector::MulAdd(Vector::Mul(apart, factor), lanes.Load(weight + i),
                                      lanes.Load(bias + i)));
  });
}

void SoftCap(float cap, std::size_t n, float* y) noexcept {
  const Vector::F factor = Vector::Set(1.0F / cap);
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, CapSoftly(lanes.Load(y + i), Vector::Set(cap), factor));
  });
}

void Add(const float* x, std::size_t n, float* y) noexcept {
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, Vector::Add(lanes.Load(y + i), lanes.Load(x + i)));
  });
}

void MultiplyElements(const float* x, std::size_t n, float* y) noexcept {
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, Vector::Mul(lanes.Load(y + i), lanes.Load(x + i)));
  });
}

void Scale(float factor, const float* x, std::size_t n, float* y) noexcept {
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    lanes.Store(y + i, Vector::Mul(lanes.Load(x + i), Vector::Set(factor)));
  });
}

// log(sum(exp(x))) = max + log(sum(exp(x - max))). float32 holds the sum of a chunk (64 additions
// a lane), float64 the sum of the chunks: a vocabulary of 10^5 then costs no accuracy.
float LogSumExp(const float* x, std::size_t n) noexcept {
  const float lowest = -__builtin_inff();
  Vector::F highest = Vector::Set(lowest);
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    Vector::F value = lanes.Load(x + i);
    if constexpr (requires { lanes.n; }) {
      value = Vector::Select(value, Vector::Set(lowest), 0, static_cast<std::int32_t>(lanes.n));
    }
    highest = Vector::Max(value, highest);
  });
  const float max = Vector::MaxLanes(highest);
  if (max == lowest || max == -lowest) {  // the comparisons above pass over a NaN
    for (std::size_t i = 0; i < n; ++i) {
      if (x[i] != x[i]) return x[i];
    }
    return max;
  }

  constexpr std::size_t kChunk = 64 * Vector::kLanes;
  double total = 0.0;
  for (std::size_t begin = 0; begin < n; begin += kChunk) {
    const std::size_t size = n - begin < kChunk ? n - begin : kChunk;
    Vector::F sum = Vector::Zero();
    ForEachVector(size, [&](std::size_t i, auto lanes) {
      Vector::F value = Exp(Vector::Sub(lanes.Load(x + begin + i), Vector::Set(max)));
      if constexpr (requires { lanes.n; }) {
        value = Vector::Select(value, Vector::Zero(), 0, static_cast<std::int32_t>(lanes.n));
      }
      sum = Vector::Add(sum, value);
    });
    total += static_cast<double>(Vector::SumLanes(sum));
  }
  if (total != total) return static_cast<float>(total);
  return static_cast<float>(static_cast<double>(max) + Log(total));
}

void ToBf16(const float* x, std::size_t n, std::uint16_t* y) noexcept {
  ForEachVector(n, [&](std::size_t i, auto lanes) { lanes.Store(y + i, lanes.Load(x + i)); });
}

float ToInt8(const float* x, std::size_t n, std::int8_t* y) noexcept {
  Vector::I largest = Vector::ZeroInt();
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    largest = Vector::MaxMagnitude(largest, lanes.Load(x + i));
  });
  const float scale = ScaleFor(Vector::MaxLanes(largest));
  const Vector::F inverse = Vector::Set(1.0F / scale);
  ForEachVector(n, [&](std::size_t i, auto lanes) {
    const Vector::I whole = Vector::ToInt(Vector::Mul(lanes.Load(x + i), inverse));
    if constexpr (requires { lanes.n; }) {
      std::int8_t copy[Vector::kLanes];
      Vector::StoreWhole(copy, whole);
      for (std::size_t j = 0; j < lanes.n; ++j) y[i + j] = copy[j];
    } else {
      Vector::StoreWhole(y + i, whole);
    }
  });
  return scale;
}

void FromBf16(const std::uint16_t* x, std::size_t n, float* y) noexcept {
  ForEachVector(n, [&](std::size_t i, auto lanes) { lanes.Store(y + i, lanes.Load(x + i)); });
}

}  // namespace
}  // namespace slimformer::kernels
