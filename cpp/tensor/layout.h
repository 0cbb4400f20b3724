// How panels lie in memory, as a number.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "tensor/dtype.h"

namespace slimformer::tensor {

// The layout of packed weights, sparse or dense: a hash of what a fixed matrix with zeros becomes.
// Tiers whose panels are the same have the same layout, and a layout changes with the kernel that
// packs it, unasked. Error(config) where the type has no sparse form.
std::uint64_t LayoutOf(const kernels::KernelTable& kernels, WeightType type, bool sparse);

}  // namespace slimformer::tensor
