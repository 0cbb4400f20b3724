// Expanding a register of items in one instruction (VBMI2: VPEXPANDB, VPEXPANDW) from values that
// are loaded whole: 64 bytes whatever the mask, which is why they may be read beyond their end. The
// instruction's own load would stop there and is no faster.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/vector-inl.h"

namespace slimformer::kernels {
namespace {

template <std::size_t kItemBytes>
struct RegisterExpander {
  static constexpr std::size_t kLineBytes = 64;

  // Writes a line of the items that the mask has bits for; returns where the next values are.
  template <std::uint8_t kZero>
  static const std::byte* Line(const std::byte* mask, const std::byte* values,
                               std::byte* to) noexcept {
    const __m512i from = _mm512_loadu_si512(values);
    __m512i line;
    std::size_t count = 0;
    if constexpr (kItemBytes == 2) {
      std::uint32_t bits;
      __builtin_memcpy(&bits, mask, sizeof(bits));
      line = _mm512_maskz_expand_epi16(bits, from);
      count = static_cast<std::size_t>(__builtin_popcountll(bits));
    } else {
      std::uint64_t bits;
      __builtin_memcpy(&bits, mask, sizeof(bits));
      line = _mm512_maskz_expand_epi8(bits, from);
      count = static_cast<std::size_t>(__builtin_popcountll(bits));
    }
    if constexpr (kZero != 0) {
      line = _mm512_xor_si512(line, _mm512_set1_epi8(static_cast<char>(kZero)));
    }
    _mm512_storeu_si512(to, line);
    return values + kItemBytes * count;
  }
};

}  // namespace
}  // namespace slimformer::kernels
