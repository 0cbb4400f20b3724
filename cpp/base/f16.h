// IEEE half precision, for reading checkpoints.
#pragma once

#include <bit>
#include <cstdint>

namespace slimformer {

inline float FloatFromF16(std::uint16_t value) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000U) << 16;
  const std::uint32_t magnitude = value & 0x7fffU;
  if (magnitude >= 0x7c00U) {  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  // Shifted into place, the exponent is 112 too small; the product repairs normal and
  // subnormal numbers alike, exactly.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | sign);
}

}  // namespace slimformer
