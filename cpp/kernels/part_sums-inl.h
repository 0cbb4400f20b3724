// The sums of the parts of a group of activations, which the minima of int4 weights multiply. To be
// included after the tier's vector-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {

// Of activations whose weights have no minima.
struct NoSums {
  static constexpr std::size_t kGroup = kInt8Group;
  static constexpr std::size_t kParts = 1;
  void Set(const std::int32_t (&)[kParts], float) noexcept {}
};

struct FloatSums {
  static constexpr std::size_t kGroup = kInt4Inputs;
  static constexpr std::size_t kParts = kInt4Parts;
  float of[kParts];

  void Set(const std::int32_t (&sums)[kParts], float scale) noexcept {
    for (std::size_t i = 0; i < kParts; ++i) of[i] = static_cast<float>(sums[i]) * scale;
  }

  // bfloat16 [kLanes][kParts].
  class Factors {
   public:
    explicit Factors(const std::byte* pairs) noexcept {
      Vector::LoadBf16Pairs(reinterpret_cast<const std::uint16_t*>(pairs), first_, second_);
    }
    Vector::F AddTo(Vector::F sum, const FloatSums& x) const noexcept {
      sum = Vector::MulAdd(first_, Vector::Set(x.of[0]), sum);
      return Vector::MulAdd(second_, Vector::Set(x.of[1]), sum);
    }

   private:
    Vector::F first_;
    Vector::F second_;
  };
};

}  // namespace
}  // namespace slimformer::kernels
