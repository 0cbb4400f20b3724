#include "kernels/registry.h"

#include <cstdint>
#include <optional>
#include <string>

#include "base/cpu_features.h"
#include "base/env.h"
#include "base/error.h"
#include "kernels/overlay.h"

namespace slimformer::kernels {
namespace {

constexpr char kTierVariable[] = "SLIMFORMER_ISA";

struct BuiltTier {
  Tier tier;
  Tier parent;             // itself where it has none
  std::uint32_t features;  // bits of CpuFeature that it needs beyond its parent's
  void (*overlay)(KernelTable&) noexcept;
};

template <class... Feature>
constexpr std::uint32_t Bits(Feature... features) {
  return (0U | ... | static_cast<std::uint32_t>(features));
}

#define SLIMFORMER_TIER(tier, parent, ...) \
  {Tier::tier, Tier::parent, Bits(__VA_ARGS__), &Overlay<Tier::tier>},
constexpr BuiltTier kBuiltTiers[] = {
#include "kernels/tiers.inc"
};
#undef SLIMFORMER_TIER

struct AvailableTier {
  Tier tier;
  KernelTable table;
};

const AvailableTier* Find(const std::vector<AvailableTier>& tiers, Tier tier) {
  for (const AvailableTier& available : tiers) {
    if (available.tier == tier) return &available;
  }
  return nullptr;
}

std::vector<AvailableTier> BuildTables() {
  const std::uint32_t cpu = DetectCpuFeatures();
  std::vector<AvailableTier> tiers;
  for (const BuiltTier& built : kBuiltTiers) {
    if ((built.features & ~cpu) != 0) continue;
    KernelTable table{};
    if (built.parent != built.tier) {
      const AvailableTier* parent = Find(tiers, built.parent);
      if (parent == nullptr) continue;
      table = parent->table;
    }
    table.tier = built.tier;
    built.overlay(table);
    tiers.push_back({built.tier, table});
  }
  return tiers;
}

const std::vector<AvailableTier>& Tables() {
  static const std::vector<AvailableTier> tiers = BuildTables();
  return tiers;
}

std::string AvailableNames() {
  std::string names;
  for (const AvailableTier& available : Tables()) {
    if (!names.empty()) names += ", ";
    names += TierName(available.tier);
  }
  return names;
}

}  // namespace

std::string_view TierName(Tier tier) noexcept {
  switch (tier) {
    case Tier::scalar:
      return "scalar";
    case Tier::avx2:
      return "avx2";
    case Tier::avx512:
      return "avx512";
    case Tier::avx512_vnni:
      return "avx512_vnni";
    case Tier::avx512_bf16:
      return "avx512_bf16";
    case Tier::amx:
      return "amx";
  }
  return "unknown";
}

std::vector<Tier> AvailableTiers() {
  std::vector<Tier> tiers;
  for (const AvailableTier& available : Tables()) tiers.push_back(available.tier);
  return tiers;
}

const KernelTable& TableFor(Tier tier) {
  const AvailableTier* available = Find(Tables(), tier);
  if (available == nullptr) {
    throw Error(ErrorKind::config, "the kernels for '" + std::string(TierName(tier)) +
                                       "' cannot run here; available: " + AvailableNames());
  }
  return available->table;
}

const KernelTable& SelectKernels() {
  const std::optional<std::string> name = Env(kTierVariable);
  if (!name) return Tables().back().table;
  for (const AvailableTier& available : Tables()) {
    if (TierName(available.tier) == *name) return available.table;
  }
  throw Error(ErrorKind::config,
              std::string(kTierVariable) + " is '" + *name +
                  "', which is unknown or cannot run here; available: " + AvailableNames());
}

}  // namespace slimformer::kernels
