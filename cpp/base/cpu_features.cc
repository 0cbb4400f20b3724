#include "base/cpu_features.h"

#include <array>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace slimformer {
namespace {

constexpr std::uint32_t Bit(CpuFeature feature) { return static_cast<std::uint32_t>(feature); }

#if defined(__x86_64__)

struct CpuidResult {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidResult Cpuid(std::uint32_t leaf, std::uint32_t subleaf) noexcept {
  CpuidResult result;  // stays zero where the CPU has no such leaf
  __get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx);
  return result;
}

// The extended state that the operating system saves (XCR0). Written in assembly: the
// intrinsic needs -mxsave, which this file must not be compiled with.
std::uint64_t EnabledState() noexcept {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Asks for the use of tile registers, for all threads of the process.
bool MayUseTiles() noexcept {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

}  // namespace

std::uint32_t DetectCpuFeatures() noexcept {
  std::uint32_t features = 0;
#if defined(__x86_64__)
  const auto set = [&features](CpuFeature feature, std::uint32_t word, int bit) {
    if ((word >> bit) & 1U) features |= Bit(feature);
  };
  const CpuidResult basic = Cpuid(1, 0);
  constexpr int kOsxsave = 27;
  if (((basic.ecx >> kOsxsave) & 1U) == 0) return 0;
  const std::uint64_t state = EnabledState();
  constexpr std::uint64_t kAvxState = 0x06;     // XMM and upper halves of YMM
  constexpr std::uint64_t kAvx512State = 0xe6;  // those, masks, upper ZMM halves, ZMM16-31
  const CpuidResult extended = Cpuid(7, 0);
  const CpuidResult extended1 = Cpuid(7, 1);

  set(CpuFeature::bmi2, extended.ebx, 8);
  if ((state & kAvxState) != kAvxState) return features;
  set(CpuFeature::avx, basic.ecx, 28);
  set(CpuFeature::fma, basic.ecx, 12);
  set(CpuFeature::f16c, basic.ecx, 29);
  set(CpuFeature::avx2, extended.ebx, 5);
  if ((state & kAvx512State) != kAvx512State) return features;
  set(CpuFeature::avx512f, extended.ebx, 16);
  set(CpuFeature::avx512dq, extended.ebx, 17);
  set(CpuFeature::avx512bw, extended.ebx, 30);
  set(CpuFeature::avx512vl, extended.ebx, 31);
  set(CpuFeature::avx512vbmi, extended.ecx, 1);
  set(CpuFeature::avx512vbmi2, extended.ecx, 6);
  set(CpuFeature::avx512vnni, extended.ecx, 11);
  set(CpuFeature::avx512bf16, extended1.eax, 5);
  constexpr std::uint64_t kTileState = 0x60000;  // shapes and contents of tiles
  constexpr int kAmxTile = 24;
  const bool has_tiles = ((extended.edx >> kAmxTile) & 1U) != 0;
  if (!has_tiles || (state & kTileState) != kTileState || !MayUseTiles()) return features;
  set(CpuFeature::amx_tile, extended.edx, kAmxTile);
  set(CpuFeature::amx_int8, extended.edx, 25);
  set(CpuFeature::amx_bf16, extended.edx, 22);
#endif
  return features;
}

std::vector<std::string> CpuFeatureNames(std::uint32_t features) {
  static constexpr std::array<std::pair<CpuFeature, const char*>, 16> kNames = {{
      {CpuFeature::avx, "avx"},
      {CpuFeature::avx2, "avx2"},
      {CpuFeature::fma, "fma"},
      {CpuFeature::f16c, "f16c"},
      {CpuFeature::bmi2, "bmi2"},
      {CpuFeature::avx512f, "avx512f"},
      {CpuFeature::avx512bw, "avx512bw"},
      {CpuFeature::avx512dq, "avx512dq"},
      {CpuFeature::avx512vl, "avx512vl"},
      {CpuFeature::avx512vnni, "avx512vnni"},
      {CpuFeature::avx512bf16, "avx512bf16"},
      {CpuFeature::avx512vbmi, "avx512vbmi"},
      {CpuFeature::avx512vbmi2, "avx512vbmi2"},
      {CpuFeature::amx_tile, "amx_tile"},
      {CpuFeature::amx_int8, "amx_int8"},
      {CpuFeature::amx_bf16, "amx_bf16"},
  }};
  std::vector<std::string> names;
  for (const auto& [feature, name] : kNames) {
    if (features & Bit(feature)) names.emplace_back(name);
  }
  return names;
}

}  // namespace slimformer
