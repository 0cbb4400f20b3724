// Which tiers this build and this machine have, and which one to use.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/kernel_table.h"

namespace slimformer::kernels {

std::string_view TierName(Tier tier) noexcept;

// Tiers that were built and that this CPU and operating system run, lowest first.
std::vector<Tier> AvailableTiers();

// The kernels of one available tier: its parent's, with those it replaces. Lives for ever.
// Error(config) where the tier is not available.
const KernelTable& TableFor(Tier tier);

// The highest available tier, or the one that the environment variable SLIMFORMER_ISA names.
// Error(config) where that name is unknown or not available here.
const KernelTable& SelectKernels();

}  // namespace slimformer::kernels
