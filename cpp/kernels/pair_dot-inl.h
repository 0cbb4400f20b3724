// Dot products by PMADDWD, which multiplies pairs of 16 bits and adds both products to 32 bits:
// exact, where its sibling for bytes, PMADDUBSW, would saturate at two products of 8 bits. Weights
// are widened as they are loaded, activations are kept as 16 bits. To be included after the tier's
// vector-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/part_sums-inl.h"
#include "kernels/quantise-inl.h"

namespace slimformer::kernels {
namespace {

template <bool kRotatedGroups, class PartSums>
struct PairDot {
  using I = Vector::I;
  using Sums = PartSums;
  static constexpr std::size_t kGroup = Sums::kGroup;
  static constexpr bool kRotated = kRotatedGroups;
  static constexpr std::size_t kPerStep = 2;
  using Number = std::int16_t;
  struct Facts {
    float scale;
    [[no_unique_address]] Sums sums;
  };

  [[gnu::always_inline]] static void Prepare(const float* x, std::size_t n, Number* numbers,
                                             Facts& facts) noexcept {
    std::int32_t sums[Sums::kParts];
    QuantiseInput<kGroup, kRotated>(x, n, numbers, facts.scale, sums);
    facts.sums.Set(sums, facts.scale);
  }
  static I MulAdd(I x, I w, I sum) noexcept { return Vector::MulAddPairs(x, w, sum); }

  // int8 weights.
  static constexpr std::uint8_t Encode(int q) noexcept { return static_cast<std::uint8_t>(q); }
  static int Decode(std::uint8_t w) noexcept { return static_cast<std::int8_t>(w); }
  static I Start(const Facts&) noexcept { return Vector::ZeroInt(); }
  static I LoadInt8(const std::byte* p) noexcept { return Vector::LoadInt8(p); }

  static void LoadInt4(const std::byte* p, I& low, I& high) noexcept {
    Vector::LoadInt4(p, low, high);
  }
};

}  // namespace
}  // namespace slimformer::kernels
