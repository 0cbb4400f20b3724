// bfloat16: the upper half of a float32.
//
// Always inlined and free of library calls, so that kernel files may use it: an out-of-line copy
// compiled for a high tier could be picked by the linker for everybody.
#pragma once

#include <cstdint>

namespace slimformer {

[[gnu::always_inline]] inline float FloatFromBf16(std::uint16_t value) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value) << 16);
}

// Rounds to nearest, ties to even. A NaN stays a NaN: it is made quiet, so that cutting its
// payload off cannot turn it into an infinity.
[[gnu::always_inline]] inline std::uint16_t Bf16FromFloat(float value) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace slimformer
