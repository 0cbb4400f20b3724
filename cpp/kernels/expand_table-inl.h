// Expanding items of one or two bytes, eight at a time, by a shuffle (PSHUFB) whose control comes
// from a table of all 256 masks: 2 KiB of it for bytes, 4 KiB for pairs, of the L1 cache's 32
// or 48. The mask, the address of its control, the values, the shuffle, a population count and an
// addition are 6 or 7 instructions whatever the number of zeros. What a product loads at once is
// put together in registers: it would wait long for smaller stores to arrive in the cache.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace slimformer::kernels {
namespace {

// For every mask of eight items, where each of their bytes comes from; 0x80 gives 0. Controls are
// loaded 16 bytes at a time, which may be more than one.
template <std::size_t kItemBytes>
struct ExpandControls {
  static constexpr std::size_t kControlBytes = 8 * kItemBytes;
  std::uint8_t bytes[256 * kControlBytes + 16 - kControlBytes];

  constexpr ExpandControls() noexcept : bytes{} {
    for (std::size_t mask = 0; mask < 256; ++mask) {
      std::size_t from = 0;
      for (std::size_t item = 0; item < 8; ++item) {
        const bool present = (mask >> item & 1U) != 0;
        for (std::size_t b = 0; b < kItemBytes; ++b) {
          bytes[mask * kControlBytes + item * kItemBytes + b] =
              present ? static_cast<std::uint8_t>(from++) : std::uint8_t{0x80};
        }
      }
    }
  }
};

template <std::size_t kItemBytes>
constexpr ExpandControls<kItemBytes> kExpandControls;

// Lines of as many bytes as the product loads at once: 16 or a whole vector.
template <std::size_t kItemBytes, std::size_t kBytes>
struct TableExpander {
  static constexpr std::size_t kLineBytes = kBytes;

  // Writes a line of the items that the mask has bits for; returns where the next values are.
  template <std::uint8_t kZero>
  [[gnu::always_inline]] static const std::byte* Line(const std::byte* mask,
                                                      const std::byte* values,
                                                      std::byte* to) noexcept {
    const __m128i zero = _mm_set1_epi8(static_cast<char>(kZero));
    __m128i parts[kBytes / 16];
#pragma GCC unroll 4
    for (__m128i& part : parts) {
      if constexpr (kItemBytes == 2) {
        part = EightItems(mask, values);
      } else {
        const __m128i low = EightItems(mask, values);
        part = _mm_unpacklo_epi64(low, EightItems(mask, values));
      }
      if constexpr (kZero != 0) part = _mm_xor_si128(part, zero);
    }
    Store(parts, to);
    return values;
  }

 private:
  // The next eight items, in the low lanes.
  [[gnu::always_inline]] static __m128i EightItems(const std::byte*& mask,
                                                   const std::byte*& values) noexcept {
    constexpr const auto& kControls = kExpandControls<kItemBytes>;
    const auto bits = static_cast<std::size_t>(*mask++);
    const __m128i from = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    values += kItemBytes * static_cast<std::size_t>(__builtin_popcountll(bits));
    const std::uint8_t* control = kControls.bytes + bits * kControls.kControlBytes;
    return _mm_shuffle_epi8(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(control)));
  }

  static void Store(const __m128i (&parts)[1], std::byte* to) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), parts[0]);
  }
  static void Store(const __m128i (&parts)[2], std::byte* to) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_set_m128i(parts[1], parts[0]));
  }
#if defined(__AVX512F__)
  static void Store(const __m128i (&parts)[4], std::byte* to) noexcept {
    const __m256i low = _mm256_set_m128i(parts[1], parts[0]);
    const __m256i high = _mm256_set_m128i(parts[3], parts[2]);
    _mm512_storeu_si512(to, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
#endif
};

}  // namespace
}  // namespace slimformer::kernels
