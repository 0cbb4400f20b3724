// Element-wise activations.
#pragma once

#include <cstddef>

#include "ops/context.h"

namespace slimformer::ops {

// y = silu(gate) * up (Shazeer 2020), all [rows, n]; y may be gate or up.
void SiluMultiply(const Context& context, const float* gate, const float* up, std::size_t rows,
                  std::size_t n, float* y);

// x[r] *= factors, x [rows, n], factors [n].
void MultiplyRows(const Context& context, const float* factors, std::size_t rows, std::size_t n,
                  float* x);

// y += x, [rows, n].
void Add(const Context& context, const float* x, std::size_t rows, std::size_t n, float* y);

}  // namespace slimformer::ops
