#include "model/layer_pass.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "model/ffn.h"
#include "model/normalise.h"
#include "ops/activation.h"
#include "ops/linear.h"

namespace slimformer::model {

using Frame = tensor::Workspace::Frame;

LayerPass::LayerPass(const ops::Context& context, const Plan& plan, std::span<const Piece> pieces,
                     const Taps& taps, std::size_t first_row)
    : context_(context),
      plan_(plan),
      spec_(plan.weights().spec),
      pieces_(pieces),
      taps_(taps),
      first_row_(first_row),
      n_channels_(static_cast<std::size_t>(spec_.n_channels)) {
  for (const Piece& piece : pieces) rows_ += piece.rows;
  if (std::ranges::any_of(spec_.layers, &LayerSpec::parallel)) {
    entry_ = context.workspace.Take<float>(rows_ * n_channels_);
  }
  const bool moved = std::ranges::any_of(pieces, [](const Piece& piece) {
    const std::optional<ops::KvWindow>& window = piece.cache->window();
    return window && piece.position + piece.rows > window->Length();
  });
  for (const RotarySpec& rotary : plan.rotaries()) {
    rotations_.push_back(MakeRotation(rotary, false));
    if (moved) sink_rotations_.push_back(MakeRotation(rotary, true));
  }
}

ops::Rotation LayerPass::MakeRotation(const RotarySpec& rotary, bool to_sinks) const {
  std::vector<ops::RowPosition> positions;  // [rows]
  for (const Piece& piece : pieces_) {
    const float* frequencies = rotary.FrequenciesFor(piece.length).data();
    const std::optional<ops::KvWindow>& window = piece.cache->window();
    for (std::size_t r = 0; r < piece.rows; ++r) {
      std::size_t position = piece.position + r;
      if (to_sinks && window) position = std::min(position, window->Length() - 1);
      positions.push_back({static_cast<std::int32_t>(position), frequencies});
    }
  }
  return ops::ComputeRotation(context_, rotary.inverse_frequencies.size(), rotary.amplitude,
                              positions);
}

void LayerPass::Run(std::size_t first, std::size_t last, float* hidden, const Poll& poll) const {
  const std::vector<Step>& steps = plan_.steps();
  auto step = std::ranges::lower_bound(steps, first, {}, LayerOf);
  const auto run_if = [&](std::size_t layer, Place place) {
    if (step == steps.end() || LayerOf(*step) != layer || PlaceOf(*step) != place) return;
    poll();
    Run(*step++, hidden);
  };
  for (std::size_t layer = first; layer < std::min(last, plan_.end_layer()); ++layer) {
    Observe(layer, Site::attention_input, hidden, n_channels_);
    run_if(layer, Place::attention);
    Observe(layer, Site::ffn_input, hidden, n_channels_);
    run_if(layer, Place::ffn);
    Observe(layer, Site::layer_output, hidden, n_channels_);
  }
}

void LayerPass::Run(const Step& step, float* hidden) const {
  const Frame frame(context_.workspace);
  const float* input = hidden;
  if (plan_.parallel(LayerOf(step))) {
    if (PlaceOf(step) == Place::attention) std::copy_n(hidden, rows_ * n_channels_, entry_);
    input = entry_;
  }
  std::visit([&](const auto& s) { Run(s, input, hidden); }, step);
}

void LayerPass::RunSteps(std::size_t first, std::size_t last, float* hidden,
                         const Poll& poll) const {
  for (std::size_t step = first; step < last; ++step) {
    poll();
    Run(plan_.steps()[step], hidden);
  }
}

// hidden += o(attention(norm(input)))
void LayerPass::Run(const AttentionStep& step, const float* input, float* hidden) const {
  const AttentionWeights& w = *step.weights;
  tensor::Workspace& workspace = context_.workspace;
  const kernels::GemmKernel* const kernels[] = {&w.q.weight->kernel(), &w.k.weight->kernel(),
                                                &w.v.weight->kernel()};
  ops::LinearInput inputs[3];
  NormInputs(step.layer, Site::attention_normed, input, w.norm, kernels, inputs);

  const std::size_t q_width = step.n_heads * step.head_dim;
  const std::size_t k_width = step.n_kv_heads * step.head_dim;
  const std::size_t v_width = step.n_kv_heads * step.value_dim;
  auto* q = workspace.Take<float>(rows_ * q_width);  // [rows, n_heads, head_dim]
  auto* k = workspace.Take<float>(rows_ * k_width);  // [rows, n_kv_heads, head_dim]
  auto* v = workspace.Take<float>(rows_ * v_width);  // [rows, n_kv_heads, value_dim]
  const ops::LinearOutput qkv[] = {
      {*w.q.weight, q, q_width, w.q.BiasData()},
      {*w.k.weight, k, k_width, w.k.BiasData()},
      {*w.v.weight, v, v_width, w.v.BiasData()},
  };
  ops::Linear(context_.pool, workspace, inputs, qkv);
  if (step.qk_norm) {
    NormaliseHeads(step, w.q_norm, step.q_mask, step.n_heads, step.qk_norm->q_divisor, q);
  }
  const std::vector<ops::AttentionSequence> sequences = Sequences(step);
  Store(step, sequences, k, v);

  const std::size_t heads_width = step.n_heads * step.value_dim;
  auto* heads = workspace.Take<float>(rows_ * heads_width);  // [rows, n_heads, value_dim]
  if (!step.all_heads) std::fill_n(heads, rows_ * heads_width, 0.0F);
  ops::Attend(context_, pieces_.front().cache->layout(step.cache), step.groups, step.scores,
              sequences,
              {q, q_width, RotationOf(step, rotations_), RotationOf(step, sink_rotations_)}, heads,
              heads_width);
  if (!step.value_mask.empty()) {
    ops::MultiplyRows(context_, step.value_mask.data(), rows_, heads_width, heads);
  }
  Observe(step.layer, Site::attention_heads, heads, heads_width);
  AddOutput(w.o, w.post_norm, step.norm_place,
            ops::PrepareInput(context_.pool, workspace, w.o.weight->kernel(), heads, heads_width,
                              rows_, heads_width),
            hidden);
}

void LayerPass::NormaliseHeads(const AttentionStep& step, const NormWeights& norm,
                               const std::vector<float>& mask, std::size_t heads, int divisor,
                               float* x) const {
  const std::size_t width = heads * step.head_dim;
  if (!mask.empty()) ops::MultiplyRows(context_, mask.data(), rows_, width, x);
  const std::size_t n = step.qk_norm->over == QkNorm::width ? width : step.head_dim;
  const ops::Norm of_heads{ops::NormKind::rms, norm.weight.data(), nullptr, spec_.norm_eps,
                           static_cast<std::size_t>(divisor)};
  ops::NormaliseRows(context_, of_heads, x, rows_ * width / n, n, x);
}

void LayerPass::StoreKeysAndValues(const AttentionStep& step, const float* hidden) const {
  const AttentionWeights& w = *step.weights;
  tensor::Workspace& workspace = context_.workspace;
  const Frame frame(workspace);
  const kernels::GemmKernel* const kernels[] = {&w.k.weight->kernel(), &w.v.weight->kernel()};
  ops::LinearInput inputs[2];
  NormInputs(step.layer, Site::attention_normed, hidden, w.norm, kernels, inputs);
  const std::size_t k_width = step.n_kv_heads * step.head_dim;
  const std::size_t v_width = step.n_kv_heads * step.value_dim;
  auto* k = workspace.Take<float>(rows_ * k_width);  // [rows, n_kv_heads, head_dim]
  auto* v = workspace.Take<float>(rows_ * v_width);  // [rows, n_kv_heads, value_dim]
  const ops::LinearOutput kv[] = {
      {*w.k.weight, k, k_width, w.k.BiasData()},
      {*w.v.weight, v, v_width, w.v.BiasData()},
  };
  ops::Linear(context_.pool, workspace, inputs, kv);
  Store(step, Sequences(step), k, v);
}

std::vector<ops::AttentionSequence> LayerPass::Sequences(const AttentionStep& step) const {
  std::vector<ops::AttentionSequence> sequences;
  std::size_t first_row = 0;
  for (const Piece& piece : pieces_) {
    sequences.push_back({first_row, piece.rows, piece.position,
                         piece.cache->Prepare(step.cache, piece.position, piece.rows),
                         piece.cache->window()});
    first_row += piece.rows;
  }
  return sequences;
}

void LayerPass::Store(const AttentionStep& step, std::span<const ops::AttentionSequence> sequences,
                      float* k, const float* v) const {
  if (step.qk_norm) {
    NormaliseHeads(step, step.weights->k_norm, step.k_mask, step.n_kv_heads,
                   step.qk_norm->k_divisor, k);
  }
  ops::StoreKeysAndValues(context_, pieces_.front().cache->layout(step.cache), step.groups,
                          sequences, k, step.n_kv_heads * step.head_dim,
                          RotationOf(step, rotations_), v, step.n_kv_heads * step.value_dim);
}

const ops::Rotation* LayerPass::RotationOf(const AttentionStep& step,
                                           const std::vector<ops::Rotation>& rotations) {
  return step.rotary && !rotations.empty() ? &rotations[*step.rotary] : nullptr;
}

// hidden += down(activation(gate(x)) * up(x)) or down(activation(up(x))), x = norm(input)
void LayerPass::Run(const FfnStep& step, const float* input, float* hidden) const {
  const FfnWeights& w = *step.weights;
  const kernels::GemmKernel* const kernels[] = {FfnKernel(w), &w.up.weight->kernel()};
  ops::LinearInput inputs[2];
  NormInputs(step.layer, Site::ffn_normed, input, w.norm, kernels, inputs);
  float* neurons = Observed(step.layer, Site::ffn_neurons, step.n_neurons);
  const ops::LinearInput joined =
      FfnNeurons(context_, w, step.activation,
                 step.neuron_mask.empty() ? nullptr : step.neuron_mask.data(), inputs, neurons);
  if (neurons != nullptr) Observe(step.layer, Site::ffn_neurons, neurons, step.n_neurons);
  AddOutput(w.down, w.post_norm, step.norm_place, joined, hidden);
}

// hidden += the weighted sum of the experts that norm(input) is routed to
void LayerPass::Run(const RoutedFfnStep& step, const float* input, float* hidden) const {
  const RoutedFfnWeights& w = *step.weights;
  const float* x = Norm(step.layer, Site::ffn_normed, input, w.norm);
  const std::size_t n_experts = w.experts.size();
  const ExpertSites sites{Observed(step.layer, Site::ffn_neurons, step.n_neurons),
                          Observed(step.layer, Site::ffn_experts, n_experts)};
  auto* output = context_.workspace.Take<float>(rows_ * n_channels_);
  RunExperts(context_, step, x, rows_, n_channels_, sites, output);
  if (sites.neurons != nullptr) {
    Observe(step.layer, Site::ffn_neurons, sites.neurons, step.n_neurons);
  }
  if (sites.lengths != nullptr) Observe(step.layer, Site::ffn_experts, sites.lengths, n_experts);
  AddNormalised(w.post_norm, step.norm_place, output, hidden);
}

// hidden += W norm(input), or a constant
void LayerPass::Run(const LinkStep& step, const float* input, float* hidden) const {
  if (const auto* constant = std::get_if<ConstantLink>(&step.weights->map)) {
    ops::AddToRows(context_, constant->bias.data(), rows_, n_channels_, hidden);
    return;
  }
  tensor::Workspace& workspace = context_.workspace;
  auto* x = workspace.Take<float>(rows_ * n_channels_);
  Normalise(input, step.weights->norm, x);
  Observe(step.layer, step.place == Place::attention ? Site::attention_normed : Site::ffn_normed, x,
          n_channels_);
  if (const auto* full = std::get_if<FullLink>(&step.weights->map)) {
    ops::Linear(context_.pool, workspace, *full->weight, x, n_channels_, rows_, hidden, n_channels_,
                nullptr, true);
  } else if (const auto* low_rank = std::get_if<LowRankLink>(&step.weights->map)) {
    const std::size_t rank = low_rank->down->rows();
    auto* narrow = workspace.Take<float>(rows_ * rank);  // [rows, rank]
    ops::Linear(context_.pool, workspace, *low_rank->down, x, n_channels_, rows_, narrow, rank);
    ops::Linear(context_.pool, workspace, *low_rank->up, narrow, rank, rows_, hidden, n_channels_,
                nullptr, true);
  } else {
    const auto& diagonal = std::get<DiagonalLink>(step.weights->map);
    ops::MultiplyRows(context_, diagonal.weight.data(), rows_, n_channels_, x);
    ops::Add(context_, x, rows_, n_channels_, hidden);
  }
}

void LayerPass::NormInputs(std::size_t layer, Site site, const float* input,
                           const NormWeights& norm,
                           std::span<const kernels::GemmKernel* const> kernels,
                           ops::LinearInput* inputs) const {
  if (norm.exists() && !taps_.Has(layer, site)) {
    ops::NormaliseInputs(context_, kernels, NormOf(spec_, norm), input, rows_, n_channels_, inputs);
    return;
  }
  ops::PrepareInputs(context_.pool, context_.workspace, kernels, Norm(layer, site, input, norm),
                     n_channels_, rows_, n_channels_, inputs);
}

const float* LayerPass::Norm(std::size_t layer, Site site, const float* input,
                             const NormWeights& norm) const {
  const float* x = input;
  if (norm.exists()) {
    auto* normed = context_.workspace.Take<float>(rows_ * n_channels_);
    Normalise(input, norm, normed);
    x = normed;
  }
  Observe(layer, site, x, n_channels_);
  return x;
}

void LayerPass::Normalise(const float* x, const NormWeights& norm, float* y) const {
  NormaliseRows(context_, spec_, norm, x, rows_, y);
}

void LayerPass::AddOutput(const LinearWeights& w, const NormWeights& post_norm, NormPlace place,
                          const ops::LinearInput& x, float* hidden) const {
  if (place == NormPlace::before || place == NormPlace::stream) {
    ops::Linear(context_.pool, context_.workspace, x,
                {*w.weight, hidden, n_channels_, w.BiasData(), true});
    if (place == NormPlace::stream) Normalise(hidden, post_norm, hidden);
    return;
  }
  auto* output = context_.workspace.Take<float>(rows_ * n_channels_);
  ops::Linear(context_.pool, context_.workspace, x, {*w.weight, output, n_channels_, w.BiasData()});
  AddNormalised(post_norm, place, output, hidden);
}

void LayerPass::AddNormalised(const NormWeights& post_norm, NormPlace place, float* output,
                              float* hidden) const {
  if (place == NormPlace::after || place == NormPlace::both) Normalise(output, post_norm, output);
  ops::Add(context_, output, rows_, n_channels_, hidden);
  if (place == NormPlace::stream) Normalise(hidden, post_norm, hidden);
}

float* LayerPass::Observed(std::size_t layer, Site site, std::size_t width) const {
  return taps_.Has(layer, site) ? context_.workspace.Take<float>(rows_ * width) : nullptr;
}

void LayerPass::Observe(std::size_t layer, Site site, const float* x, std::size_t width) const {
  taps_.Observe(layer, site, x, first_row_, rows_, width);
}

}  // namespace slimformer::model
