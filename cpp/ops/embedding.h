// Looking tokens up.
#pragma once

#include <cstdint>
#include <span>

#include "ops/context.h"
#include "tensor/packed_matrix.h"

namespace slimformer::ops {

// y[r] = matrix[tokens[r]], [tokens, n_channels]. Every token must be a row of the matrix.
void Embed(const Context& context, const tensor::PackedMatrix& matrix,
           std::span<const std::int32_t> tokens, float* y);

}  // namespace slimformer::ops
