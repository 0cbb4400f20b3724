#include "model/ffn.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/activation.h"
#include "ops/gated.h"
#include "ops/linear.h"
#include "ops/routing.h"

namespace slimformer::model {
namespace {

using Frame = tensor::Workspace::Frame;

std::size_t NeuronsOf(const FfnWeights& ffn) { return ffn.up.weight->rows(); }

// sites.lengths[row, expert] of x [rows, n_channels], what the expert adds to each of its rows.
void WriteLengths(const ops::ExpertRows& to, std::size_t expert, std::size_t n_experts,
                  const float* x, std::size_t n_channels, float* lengths) {
  for (std::size_t i = 0; i < to.rows.size(); ++i) {
    double squares = 0;
    for (std::size_t c = 0; c < n_channels; ++c) {
      const auto value = static_cast<double>(x[i * n_channels + c]);
      squares += value * value;
    }
    lengths[to.rows[i] * n_experts + expert] = static_cast<float>(std::sqrt(squares));
  }
}

// The expert's neurons [its rows, n] to their place in all_neurons [rows, width].
void WriteNeurons(const ops::ExpertRows& to, const float* neurons, std::size_t n, std::size_t first,
                  std::size_t width, float* all_neurons) {
  for (std::size_t i = 0; i < to.rows.size(); ++i) {
    std::transform(neurons + i * n, neurons + (i + 1) * n, all_neurons + to.rows[i] * width + first,
                   [weight = to.weights[i]](float value) { return weight * value; });
  }
}

}  // namespace

const kernels::GemmKernel* FfnKernel(const FfnWeights& weights) {
  return &(weights.gate.weight ? weights.gate : weights.up).weight->kernel();
}

ops::LinearInput FfnNeurons(const ops::Context& context, const FfnWeights& weights,
                            kernels::ActivationKernel activation, const float* factors,
                            const ops::LinearInput (&inputs)[2], float* neurons) {
  const tensor::PackedMatrix& up = *weights.up.weight;
  const kernels::GemmKernel& reader = weights.down.weight->kernel();
  if (weights.gate.weight) {
    const ops::GatedLayers layers{*weights.gate.weight,
                                  weights.gate.BiasData(),
                                  up,
                                  weights.up.BiasData(),
                                  activation,
                                  factors};
    return ops::GatedNeurons(context, layers, inputs, reader, neurons);
  }
  const std::size_t n = up.rows();
  const std::size_t rows = inputs[1].rows;
  if (neurons == nullptr) neurons = context.workspace.Take<float>(rows * n);
  ops::Linear(context.pool, context.workspace, inputs[1], {up, neurons, n, weights.up.BiasData()});
  ops::Activate(context, activation, factors, rows, n, neurons);
  return ops::PrepareInput(context.pool, context.workspace, reader, neurons, n, rows, n);
}

void RunExperts(const ops::Context& context, const RoutedFfnStep& step, const float* x,
                std::size_t rows, std::size_t n_channels, const ExpertSites& sites, float* output) {
  tensor::Workspace& workspace = context.workspace;
  const RoutedFfnWeights& w = *step.weights;
  const std::size_t n_experts = w.experts.size();
  const Frame frame(workspace);
  auto* logits = workspace.Take<float>(rows * n_experts);  // [rows, n_experts]
  ops::Linear(context.pool, workspace, *w.router, x, n_channels, rows, logits, n_experts);
  const std::vector<ops::ExpertRows> routed =
      ops::Route(context, logits, rows, n_experts, step.experts, step.top_k, step.softmax_over);
  std::fill_n(output, rows * n_channels, 0.0F);
  if (sites.lengths != nullptr) std::fill_n(sites.lengths, rows * n_experts, 0.0F);
  if (sites.neurons != nullptr) std::fill_n(sites.neurons, rows * step.n_neurons, 0.0F);
  for (std::size_t i = 0; i < step.experts.size(); ++i) {
    const ops::ExpertRows& to = routed[i];
    const std::size_t expert = step.experts[i];
    const std::size_t n_rows = to.rows.size();
    if (n_rows == 0) continue;
    const Frame expert_frame(workspace);
    const FfnWeights& ffn = w.experts[expert];
    const std::size_t n = NeuronsOf(ffn);
    auto* own = workspace.Take<float>(n_rows * n_channels);  // [n_rows, n_channels]
    ops::GatherRows(context, x, to.rows, n_channels, own);
    float* neurons = sites.neurons == nullptr ? nullptr : workspace.Take<float>(n_rows * n);
    const std::vector<float>& mask = step.neuron_masks[i];
    const kernels::GemmKernel* const kernels[] = {FfnKernel(ffn), &ffn.up.weight->kernel()};
    ops::LinearInput inputs[2];
    ops::PrepareInputs(context.pool, workspace, kernels, own, n_channels, n_rows, n_channels,
                       inputs);
    const ops::LinearInput joined = FfnNeurons(
        context, ffn, step.activation, mask.empty() ? nullptr : mask.data(), inputs, neurons);
    auto* added = workspace.Take<float>(n_rows * n_channels);  // [n_rows, n_channels]
    ops::Linear(context.pool, workspace, joined,
                {*ffn.down.weight, added, n_channels, ffn.down.BiasData()});
    ops::AddWeightedRows(context, to, n_channels, added, output);
    if (sites.lengths != nullptr) {
      WriteLengths(to, expert, n_experts, added, n_channels, sites.lengths);
    }
    if (neurons != nullptr) {
      WriteNeurons(to, neurons, n, step.first_neurons[i], step.n_neurons, sites.neurons);
    }
  }
}

}  // namespace slimformer::model
