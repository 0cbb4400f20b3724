// Root mean square norm (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016).
#pragma once

#include <cstddef>

#include "ops/context.h"

namespace slimformer::ops {

enum class NormKind { rms, layer };

// rms:    y = x / sqrt(sum(x^2) / divisor + eps) * weight. The divisor is the width that the model
//         was trained with, which is more than n after channels have been removed.
// layer:  y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias.
struct Norm {
  NormKind kind;
  const float* weight;  // [n]
  const float* bias;    // [n], layer only
  float eps;
  std::size_t divisor;  // rms only
};

// y [n] = norm(x [n]); y may be x.
void NormaliseRow(const kernels::KernelTable& kernels, const Norm& norm, const float* x,
                  std::size_t n, float* y);

// y = norm(x), both [rows, n]; y may be x.
void NormaliseRows(const Context& context, const Norm& norm, const float* x, std::size_t rows,
                   std::size_t n, float* y);

}  // namespace slimformer::ops
