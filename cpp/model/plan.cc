#include "model/plan.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/error.h"

namespace slimformer::model {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};

[[noreturn]] void Refuse(const std::string& message) {
  throw Error(ErrorKind::config, "mask: " + message);
}

void CheckIndices(std::span<const int> indices, std::size_t count, const std::string& what) {
  std::vector<bool> seen(count);
  for (const int index : indices) {
    if (index < 0 || static_cast<std::size_t>(index) >= count) {
      Refuse(what + " " + std::to_string(index) + " does not exist: there are " +
             std::to_string(count));
    }
    if (seen[static_cast<std::size_t>(index)]) {
      Refuse(what + " " + std::to_string(index) + " is listed twice");
    }
    seen[static_cast<std::size_t>(index)] = true;
  }
}

bool Contains(std::span<const int> values, std::size_t value) {
  return std::ranges::find(values, static_cast<int>(value)) != values.end();
}

const RoutedFfnSpec& RoutedFfnOf(const ModelSpec& spec, int layer) {
  CheckIndices({&layer, 1}, spec.layers.size(), "layer");
  const auto& ffn = spec.layers[static_cast<std::size_t>(layer)].routed_ffn;
  if (!ffn) Refuse("layer " + std::to_string(layer) + " has no experts that could be kept");
  return *ffn;
}

void CheckExperts(const ModelSpec& spec, const Mask& mask) {
  for (const auto& [layer, experts] : mask.experts) {
    const std::size_t n_experts = RoutedFfnOf(spec, layer).experts.size();
    const std::string where = "layer " + std::to_string(layer);
    if (experts.empty()) Refuse(where + " keeps no expert; skip its FFN instead");
    CheckIndices(experts, n_experts, where + ": expert");
  }
  for (const auto& [layer, neurons_by_expert] : mask.expert_neurons) {
    const RoutedFfnSpec& ffn = RoutedFfnOf(spec, layer);
    for (const auto& [expert, neurons] : neurons_by_expert) {
      std::string where = "layer " + std::to_string(layer);
      CheckIndices({&expert, 1}, ffn.experts.size(), where + ": expert");
      where += ": expert " + std::to_string(expert);
      if (neurons.empty()) Refuse(where + " keeps no neuron; leave the expert out instead");
      CheckIndices(neurons, static_cast<std::size_t>(ffn.experts[static_cast<std::size_t>(expert)]),
                   where + ": neuron");
    }
  }
}

void CheckMask(const ModelSpec& spec, const Mask& mask) {
  const std::size_t n_layers = spec.layers.size();
  CheckIndices(mask.skip_attention, n_layers, "layer");
  CheckIndices(mask.skip_ffn, n_layers, "layer");
  if (mask.exit_after) CheckIndices({&*mask.exit_after, 1}, n_layers, "layer");
  for (const auto& [layer, heads] : mask.heads) {
    CheckIndices({&layer, 1}, n_layers, "layer");
    const std::string where = "layer " + std::to_string(layer);
    const auto& attention = spec.layers[static_cast<std::size_t>(layer)].attention;
    if (!attention) Refuse(where + " has no attention whose heads could be kept");
    if (heads.empty()) Refuse(where + " keeps no head; skip its attention instead");
    CheckIndices(heads, static_cast<std::size_t>(attention->n_heads), where + ": head");
  }
  for (const auto& [layer, entries] : mask.value_dims) {
    CheckIndices({&layer, 1}, n_layers, "layer");
    const std::string where = "layer " + std::to_string(layer);
    const auto& attention = spec.layers[static_cast<std::size_t>(layer)].attention;
    if (!attention) Refuse(where + " has no attention whose value entries could be kept");
    if (entries.empty()) Refuse(where + " keeps no value entry; skip its attention instead");
    CheckIndices(entries, static_cast<std::size_t>(attention->value_dim), where + ": value entry");
  }
  for (const auto& [layer, neurons] : mask.neurons) {
    CheckIndices({&layer, 1}, n_layers, "layer");
    const std::string where = "layer " + std::to_string(layer);
    const auto& ffn = spec.layers[static_cast<std::size_t>(layer)].ffn;
    if (!ffn) Refuse(where + " has no FFN whose neurons could be kept");
    if (neurons.empty()) Refuse(where + " keeps no neuron; skip its FFN instead");
    CheckIndices(neurons, static_cast<std::size_t>(ffn->n_neurons), where + ": neuron");
  }
  CheckExperts(spec, mask);
}

// The kept query heads, grouped by the KV head that they read.
std::vector<ops::HeadGroup> GroupHeads(const AttentionSpec& spec, const std::vector<int>* kept) {
  std::map<int, ops::HeadGroup> groups;
  for (std::size_t head = 0; head < spec.q_to_kv.size(); ++head) {
    if (kept != nullptr && !Contains(*kept, head)) continue;
    const int kv_head = spec.q_to_kv[head];
    ops::HeadGroup& group = groups[kv_head];
    group.kv_head = static_cast<std::size_t>(kv_head);
    group.heads.push_back(head);
  }
  std::vector<ops::HeadGroup> result;
  result.reserve(groups.size());
  for (auto& [kv_head, group] : groups) result.push_back(std::move(group));
  return result;
}

// [heads * head_dim] of 0 and 1.
std::vector<float> HeadMask(std::size_t heads, std::size_t head_dim,
                            std::span<const std::size_t> kept) {
  std::vector<float> mask(heads * head_dim);
  for (const std::size_t head : kept) {
    std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(head * head_dim), head_dim, 1.0F);
  }
  return mask;
}

// [n_units] of 0 and 1; empty where nothing is said of them.
std::vector<float> UnitMask(std::size_t n_units, const std::vector<int>* kept) {
  std::vector<float> mask;
  if (kept == nullptr) return mask;
  mask.resize(n_units);
  for (const int unit : *kept) mask[static_cast<std::size_t>(unit)] = 1.0F;
  return mask;
}

// The mask of one head for each of them.
std::vector<float> Repeated(const std::vector<float>& mask, std::size_t times) {
  std::vector<float> all;
  all.reserve(times * mask.size());
  for (std::size_t i = 0; i < times; ++i) all.insert(all.end(), mask.begin(), mask.end());
  return all;
}

template <class T>
const T* Find(const std::map<int, T>& map, std::size_t key) {
  const auto found = map.find(static_cast<int>(key));
  return found == map.end() ? nullptr : &found->second;
}

}  // namespace

std::size_t LayerOf(const Step& step) {
  return std::visit([](const auto& s) { return s.layer; }, step);
}

Place PlaceOf(const Step& step) {
  return std::visit(Overloaded{[](const AttentionStep&) { return Place::attention; },
                               [](const FfnStep&) { return Place::ffn; },
                               [](const RoutedFfnStep&) { return Place::ffn; },
                               [](const LinkStep& link) { return link.place; }},
                    step);
}

Plan::Plan(std::shared_ptr<const Weights> weights, const Mask& mask)
    : weights_(std::move(weights)) {
  CheckMask(weights_->spec, mask);
  end_layer_ =
      mask.exit_after ? static_cast<std::size_t>(*mask.exit_after) + 1 : weights_->layers.size();
  for (std::size_t i = 0; i < end_layer_; ++i) {
    const LayerWeights& layer = weights_->layers[i];
    if (!Contains(mask.skip_attention, i)) {
      std::visit(Overloaded{[](std::monostate) {},
                            [&](const AttentionWeights& w) { AddAttention(i, w, mask); },
                            [&](const LinkWeights& w) {
                              steps_.emplace_back(LinkStep{i, Place::attention, &w});
                            }},
                 layer.attention);
    }
    if (!Contains(mask.skip_ffn, i)) {
      std::visit(Overloaded{[](std::monostate) {}, [&](const FfnWeights& w) { AddFfn(i, w, mask); },
                            [&](const RoutedFfnWeights& w) { AddRoutedFfn(i, w, mask); },
                            [&](const LinkWeights& w) {
                              steps_.emplace_back(LinkStep{i, Place::ffn, &w});
                            }},
                 layer.ffn);
    }
  }
  for (std::size_t i = 0; i < weights_->layers.size(); ++i) {
    const auto steps = std::ranges::count(steps_, i, LayerOf);
    parallel_.push_back(weights_->spec.layers[i].parallel && steps == 2);
  }
}

void Plan::AddAttention(std::size_t layer, const AttentionWeights& weights, const Mask& mask) {
  const AttentionSpec& spec = *weights_->spec.layers[layer].attention;
  const std::vector<int>* kept = Find(mask.heads, layer);
  const auto n_heads = static_cast<std::size_t>(spec.n_heads);
  std::optional<std::size_t> rotary;
  if (spec.rotary) rotary = RotaryIndex(*spec.rotary);
  AttentionStep step{.layer = layer,
                     .weights = &weights,
                     .n_heads = n_heads,
                     .n_kv_heads = static_cast<std::size_t>(spec.n_kv_heads),
                     .head_dim = static_cast<std::size_t>(spec.head_dim),
                     .value_dim = static_cast<std::size_t>(spec.value_dim),
                     .scores = {spec.scale, spec.soft_cap, spec.window, weights_->spec.causal},
                     .qk_norm = spec.qk_norm,
                     .rotary = rotary,
                     .groups = GroupHeads(spec, kept),
                     .all_heads = kept == nullptr || kept->size() == n_heads,
                     .q_mask = {},
                     .k_mask = {},
                     .value_mask = Repeated(UnitMask(static_cast<std::size_t>(spec.value_dim),
                                                     Find(mask.value_dims, layer)),
                                            n_heads),
                     .norm_place = spec.norm_place,
                     .cache = attention_steps_++};
  if (!step.all_heads && spec.qk_norm && spec.qk_norm->over == QkNorm::width) {
    std::vector<std::size_t> heads;
    std::vector<std::size_t> kv_heads;
    for (const ops::HeadGroup& group : step.groups) {
      heads.insert(heads.end(), group.heads.begin(), group.heads.end());
      kv_heads.push_back(group.kv_head);
    }
    step.q_mask = HeadMask(n_heads, step.head_dim, heads);
    step.k_mask = HeadMask(step.n_kv_heads, step.head_dim, kv_heads);
  }
  steps_.emplace_back(std::move(step));
}

void Plan::AddFfn(std::size_t layer, const FfnWeights& weights, const Mask& mask) {
  const FfnSpec& spec = *weights_->spec.layers[layer].ffn;
  const auto n_neurons = static_cast<std::size_t>(spec.n_neurons);
  steps_.emplace_back(FfnStep{layer, &weights, n_neurons, spec.norm_place,
                              kernels::KernelOf(weights_->kernels, spec.activation),
                              UnitMask(n_neurons, Find(mask.neurons, layer))});
}

void Plan::AddRoutedFfn(std::size_t layer, const RoutedFfnWeights& weights, const Mask& mask) {
  const RoutedFfnSpec& spec = *weights_->spec.layers[layer].routed_ffn;
  RoutedFfnStep step{.layer = layer,
                     .weights = &weights,
                     .n_neurons = 0,
                     .experts = {},
                     .first_neurons = {},
                     .neuron_masks = {},
                     .top_k = static_cast<std::size_t>(spec.top_k),
                     .softmax_over = spec.softmax_over,
                     .norm_place = spec.norm_place,
                     .activation = kernels::KernelOf(weights_->kernels, spec.activation)};
  const std::vector<int>* kept = Find(mask.experts, layer);
  const auto* kept_neurons = Find(mask.expert_neurons, layer);
  for (std::size_t expert = 0; expert < spec.experts.size(); ++expert) {
    const auto neurons = static_cast<std::size_t>(spec.experts[expert]);
    if (kept == nullptr || Contains(*kept, expert)) {
      step.experts.push_back(expert);
      step.first_neurons.push_back(step.n_neurons);
      step.neuron_masks.push_back(
          UnitMask(neurons, kept_neurons == nullptr ? nullptr : Find(*kept_neurons, expert)));
    }
    step.n_neurons += neurons;
  }
  steps_.emplace_back(std::move(step));
}

std::size_t Plan::RotaryIndex(const RotarySpec& rotary) {
  const auto found = std::ranges::find(rotaries_, rotary);
  const auto index = static_cast<std::size_t>(found - rotaries_.begin());
  if (found == rotaries_.end()) rotaries_.push_back(rotary);
  return index;
}

std::size_t Plan::last_attention() const {
  for (std::size_t step = steps_.size(); step-- > 0;) {
    if (std::holds_alternative<AttentionStep>(steps_[step])) return step;
  }
  return 0;
}

bool Plan::Equals(const Plan& other) const {
  if (this == &other) return true;
  if (weights_ != other.weights_ || steps_.size() != other.steps_.size()) return false;
  return std::ranges::equal(steps_, other.steps_, [](const Step& a, const Step& b) {
    if (a.index() != b.index() || LayerOf(a) != LayerOf(b) || PlaceOf(a) != PlaceOf(b)) {
      return false;
    }
    if (const auto* attention = std::get_if<AttentionStep>(&a)) {
      const auto& against = std::get<AttentionStep>(b);
      return attention->groups == against.groups && attention->value_mask == against.value_mask;
    }
    if (const auto* ffn = std::get_if<FfnStep>(&a)) {
      return ffn->neuron_mask == std::get<FfnStep>(b).neuron_mask;
    }
    if (const auto* routed = std::get_if<RoutedFfnStep>(&a)) {
      const auto& against = std::get<RoutedFfnStep>(b);
      return routed->experts == against.experts && routed->neuron_masks == against.neuron_masks;
    }
    return true;
  });
}

std::vector<std::string> Plan::StepNames() const {
  std::vector<std::string> names;
  for (const Step& step : steps_) {
    std::string name = "layers." + std::to_string(LayerOf(step)) +
                       (PlaceOf(step) == Place::attention ? ".attention" : ".ffn");
    if (std::holds_alternative<LinkStep>(step)) name += ".link";
    names.push_back(std::move(name));
  }
  return names;
}

}  // namespace slimformer::model
