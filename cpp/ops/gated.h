// The two layers of a gated FFN and their activation, in one pass.
#pragma once

#include <cstddef>

#include "ops/context.h"
#include "ops/linear_input.h"
#include "tensor/packed_matrix.h"

namespace slimformer::ops {

// Layers gate and up, both [neurons, inputs] with tiles of one shape, and how to join what they
// make.
struct GatedLayers {
  const tensor::PackedMatrix& gate;
  const float* gate_bias;  // [neurons] or null
  const tensor::PackedMatrix& up;
  const float* up_bias;  // [neurons] or null

  kernels::ActivationKernel activation;
  const float* factors;  // [neurons] that multiply what was joined, or null
};

// activation(gate(x)) * up(x) for the rows of x, of which `inputs` are gate's form and up's, in the
// form in which `reader` reads it and in memory of the workspace. Some neurons of some rows at a
// time pass from product to activation to that form in the cache; their float32 values are written
// to memory where `reader` takes those, or where they are asked for: neurons [rows, neurons] or
// null.
LinearInput GatedNeurons(const Context& context, const GatedLayers& layers,
                         const LinearInput (&inputs)[2], const kernels::GemmKernel& reader,
                         float* neurons);

}  // namespace slimformer::ops
