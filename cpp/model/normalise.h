// The norm of a model over rows of its stream.
#pragma once

#include <cstddef>

#include "model/weights.h"
#include "ops/context.h"

namespace slimformer::model {

// y = norm(x), both [rows, n_channels]; y may be x.
inline void NormaliseRows(const ops::Context& context, const ModelSpec& spec,
                          const NormWeights& norm, const float* x, std::size_t rows, float* y) {
  const auto n = static_cast<std::size_t>(spec.n_channels);
  if (spec.norm == ops::NormKind::layer) {
    ops::LayerNorm(context, x, rows, n, norm.weight.data(), norm.bias.data(), spec.norm_eps, y);
  } else {
    ops::RmsNorm(context, x, rows, n, norm.weight.data(), spec.norm_eps,
                 static_cast<std::size_t>(spec.norm_divisor), y);
  }
}

}  // namespace slimformer::model
