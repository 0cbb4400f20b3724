// Root mean square norm (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016).
#pragma once

#include <cstddef>

#include "ops/context.h"

namespace slimformer::ops {

enum class NormKind { rms, layer };

// y[r] = x[r] / sqrt(sum(x[r]^2) / divisor + eps) * weight. The divisor is the width that the
// model was trained with, which is more than n after channels have been removed.
void RmsNorm(const Context& context, const float* x, std::size_t rows, std::size_t n,
             const float* weight, float eps, std::size_t divisor, float* y);

// y[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * weight + bias.
void LayerNorm(const Context& context, const float* x, std::size_t rows, std::size_t n,
               const float* weight, const float* bias, float eps, float* y);

}  // namespace slimformer::ops
