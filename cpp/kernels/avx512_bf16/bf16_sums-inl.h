// The sums of the parts of a group of activations as bfloat16, so that both multiply their minima
// in one dot product (VDPBF16PS) instead of two multiply-adds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/avx512/vector-inl.h"
#include "kernels/quantisation.h"

namespace slimformer::kernels {
namespace {

struct Bf16Sums {
  static constexpr std::size_t kGroup = kInt4Inputs;
  static constexpr std::size_t kParts = kInt4Parts;
  std::uint16_t of[kParts];

  void Set(const std::int32_t (&sums)[kParts], float scale) noexcept {
    for (std::size_t i = 0; i < kParts; ++i) {
      of[i] = Bf16FromFloat(static_cast<float>(sums[i]) * scale);
    }
  }

  // bfloat16 [kLanes][kParts].
  class Factors {
   public:
    explicit Factors(const std::byte* pairs) noexcept : pairs_(_mm512_load_si512(pairs)) {}
    Vector::F AddTo(Vector::F sum, const Bf16Sums& x) const noexcept {
      std::int32_t pair;
      __builtin_memcpy(&pair, x.of, sizeof(pair));
      return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs_),
                              reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)));
    }

   private:
    __m512i pairs_;
  };
};

}  // namespace
}  // namespace slimformer::kernels
