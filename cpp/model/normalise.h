// The norms of a model over rows of its stream.
#pragma once

#include <cstddef>

#include "model/weights.h"
#include "ops/norm.h"

namespace slimformer::model {

inline ops::Norm NormOf(const ModelSpec& spec, const NormWeights& weights) {
  return {spec.norm, weights.weight.data(), weights.bias.data(), spec.norm_eps,
          static_cast<std::size_t>(spec.norm_divisor)};
}

// y = norm(x), both [rows, n_channels]; y may be x.
inline void NormaliseRows(const ops::Context& context, const ModelSpec& spec,
                          const NormWeights& norm, const float* x, std::size_t rows, float* y) {
  ops::NormaliseRows(context, NormOf(spec, norm), x, rows,
                     static_cast<std::size_t>(spec.n_channels), y);
}

}  // namespace slimformer::model
