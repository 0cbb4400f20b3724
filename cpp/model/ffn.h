// The arithmetic of feed-forward sub-blocks, dense and routed, between their norms.
#pragma once

#include <cstddef>

#include "model/plan.h"
#include "ops/context.h"
#include "ops/linear_input.h"

namespace slimformer::model {

// The kernel of gate, or of up where there is no gate.
const kernels::GemmKernel* FfnKernel(const FfnWeights& weights);

// What the down projection reads, made of x [rows, n_channels], of which `inputs` are the forms
// that FfnKernel() and the kernel of up read, in memory of the workspace. `factors` [neurons]
// multiply it where they are not null. The values are written to neurons [rows, neurons], too,
// unless that is null.
ops::LinearInput FfnNeurons(const ops::Context& context, const FfnWeights& weights,
                            kernels::ActivationKernel activation, const float* factors,
                            const ops::LinearInput (&inputs)[2], float* neurons);

// Where what flows through the experts is to be seen; null where nobody looks.
struct ExpertSites {
  float* neurons;  // [rows, neurons of all experts], each times the weight of its expert's output
  float* lengths;  // [rows, experts], of what each adds
};

// output [rows, n_channels] = the weighted sum of the experts that each row of x [rows, n_channels]
// is routed to. Experts run one after another, each on its rows, in ascending order: a row is
// summed in the same order whatever other rows there are.
void RunExperts(const ops::Context& context, const RoutedFfnStep& step, const float* x,
                std::size_t rows, std::size_t n_channels, const ExpertSites& sites, float* output);

}  // namespace slimformer::model
