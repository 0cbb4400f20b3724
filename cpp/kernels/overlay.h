// The one symbol that a tier's object file exports.
#pragma once

#include "kernels/kernel_table.h"

namespace slimformer::kernels {

// Puts a tier's kernels in place of its parent's and leaves alone what the tier inherits. Only to
// be called where the tier is available: the function itself is compiled for it.
template <Tier tier>
void Overlay(KernelTable& table) noexcept;

}  // namespace slimformer::kernels
