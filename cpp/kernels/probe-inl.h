// Measures of what the machine can do at most, for comparison. To be included after the tier's
// vector-inl.h.
#pragma once

#include <cstddef>

namespace slimformer::kernels {
namespace {

// Twelve chains of multiply-adds in registers: more than the latency times the pipes of any CPU
// that the tiers run on (4 x 2), and no memory. They start apart, or the compiler would find that
// they are all the same chain.
std::size_t ProbeFma(std::size_t iterations, float* sink) noexcept {
  constexpr std::size_t kChains = 12;
  Vector::F sums[kChains];
#pragma GCC unroll 16
  for (std::size_t c = 0; c < kChains; ++c) {
    sums[c] = Vector::Set(sink[0] + static_cast<float>(c));
  }
  const Vector::F factor = Vector::Set(sink[1]);
  const Vector::F term = Vector::Set(sink[2]);
  for (std::size_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (std::size_t c = 0; c < kChains; ++c) sums[c] = Vector::MulAdd(sums[c], factor, term);
  }
  Vector::F total = Vector::Zero();
#pragma GCC unroll 16
  for (std::size_t c = 0; c < kChains; ++c) total = Vector::Add(total, sums[c]);
  sink[0] = Vector::SumLanes(total);
  return iterations * kChains * Vector::kLanes * 2;
}

// Reads n floats, a multiple of 8 vectors, once.
void ProbeRead(const float* x, std::size_t n, float* sink) noexcept {
  constexpr std::size_t kSums = 8;
  constexpr std::size_t kAheadBytes = 4096;
  Vector::F sums[kSums];
#pragma GCC unroll 8
  for (std::size_t s = 0; s < kSums; ++s) sums[s] = Vector::Zero();
  for (std::size_t i = 0; i < n; i += kSums * Vector::kLanes) {
#pragma GCC unroll 8
    for (std::size_t s = 0; s < kSums; ++s) {
      const float* from = x + i + s * Vector::kLanes;
      Vector::Prefetch(reinterpret_cast<const char*>(from) + kAheadBytes);
      sums[s] = Vector::Add(sums[s], Vector::Load(from));
    }
  }
  Vector::F total = Vector::Zero();
#pragma GCC unroll 8
  for (std::size_t s = 0; s < kSums; ++s) total = Vector::Add(total, sums[s]);
  sink[0] = Vector::SumLanes(total);
}

}  // namespace
}  // namespace slimformer::kernels
