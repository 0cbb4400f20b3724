// What this CPU can run and this operating system lets it run (CPUID, XGETBV, arch_prctl).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace slimformer {

enum class CpuFeature : std::uint32_t {
  avx = 1U << 0,
  avx2 = 1U << 1,
  fma = 1U << 2,
  f16c = 1U << 3,
  bmi2 = 1U << 4,
  avx512f = 1U << 5,
  avx512bw = 1U << 6,
  avx512dq = 1U << 7,
  avx512vl = 1U << 8,
  avx512vnni = 1U << 9,
  avx512bf16 = 1U << 10,
  avx512vbmi2 = 1U << 11,
  avx512vbmi = 1U << 12,
  amx_tile = 1U << 13,
  amx_int8 = 1U << 14,
  amx_bf16 = 1U << 15,
};

// Bits of CpuFeature. A feature whose registers the operating system does not save is not set.
// Linux saves tile registers for processes that ask for it: if the CPU has them, this does, and
// they are not set where the answer is no.
std::uint32_t DetectCpuFeatures() noexcept;

std::vector<std::string> CpuFeatureNames(std::uint32_t features);

}  // namespace slimformer
