#include "bindings/spec_from_python.h"

#include <pybind11/stl.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/arrays.h"

namespace slimformer::bindings {
namespace {

template <class T>
T Get(const py::handle& object, const char* name) {
  const py::object value = object.attr(name);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw Error(ErrorKind::config,
                std::string(name) + ": cannot use " + py::repr(value).cast<std::string>());
  }
}

std::vector<float> InverseFrequencies(const py::handle& rope, int length) {
  const py::array frequencies = rope.attr("inverse_frequencies")(length);
  const Array<float> checked = Checked<float>(frequencies, 1, "rope inverse_frequencies");
  return {checked.data(), checked.data() + checked.size()};
}

std::optional<model::RotarySpec> Rotary(const py::handle& rope) {
  if (rope.is_none()) return std::nullopt;
  const auto usual = Get<std::optional<int>>(rope, "usual_length");
  std::vector<float> of_long;
  if (usual) of_long = InverseFrequencies(rope, *usual + 1);
  return model::RotarySpec{InverseFrequencies(rope, 1), Get<float>(rope, "amplitude"), usual,
                           std::move(of_long)};
}

// One of the values of a Literal.
template <class T>
T Choice(const py::handle& config, const char* name,
         std::initializer_list<std::pair<const char*, T>> choices) {
  const auto value = Get<std::string>(config, name);
  for (const auto& [text, choice] : choices) {
    if (value == text) return choice;
  }
  throw Error(ErrorKind::config, std::string(name) + ": cannot use " + value);
}

model::NormPlace Place(const py::handle& config) {
  using enum model::NormPlace;
  return Choice<model::NormPlace>(
      config, "norm_place",
      {{"before", before}, {"after", after}, {"both", both}, {"stream", stream}});
}

std::optional<model::QkNormSpec> QueryKeyNorm(const py::handle& config) {
  if (config.attr("qk_norm").is_none()) return std::nullopt;
  using enum model::QkNorm;
  const auto over = Choice<model::QkNorm>(config, "qk_norm", {{"head", head}, {"width", width}});
  const int head_dim = Get<int>(config, "head_dim");
  return model::QkNormSpec{over,
                           Get<std::optional<int>>(config, "q_norm_divisor").value_or(head_dim),
                           Get<std::optional<int>>(config, "k_norm_divisor").value_or(head_dim)};
}

model::AttentionSpec Attention(const py::handle& config) {
  return {
      .n_heads = Get<int>(config, "n_heads"),
      .n_kv_heads = Get<int>(config, "n_kv_heads"),
      .head_dim = Get<int>(config, "head_dim"),
      .value_dim = Get<int>(config, "value_dim"),
      .q_to_kv = Get<std::vector<int>>(config, "q_to_kv"),
      .scale = Get<float>(config, "scale"),
      .rotary = Rotary(config.attr("rope")),
      .qkv_bias = Get<bool>(config, "qkv_bias"),
      .output_bias = Get<bool>(config, "output_bias"),
      .norm_place = Place(config),
      .window = Get<std::optional<int>>(config, "window"),
      .soft_cap = Get<std::optional<float>>(config, "soft_cap"),
      .qk_norm = QueryKeyNorm(config),
  };
}

kernels::Activation ActivationOf(const py::handle& config) {
  using enum kernels::Activation;
  return Choice<kernels::Activation>(
      config, "activation",
      {{"silu", silu}, {"gelu_tanh", gelu_tanh}, {"gelu", gelu}, {"relu", relu}});
}

model::FfnSpec Ffn(const py::handle& config) {
  return {
      .n_neurons = Get<int>(config, "n_neurons"),
      .bias = Get<bool>(config, "bias"),
      .norm_place = Place(config),
      .activation = ActivationOf(config),
      .gated = Get<bool>(config, "gated"),
  };
}

model::RoutedFfnSpec RoutedFfn(const py::handle& config) {
  using enum ops::SoftmaxOver;
  return {
      .experts = Get<std::vector<int>>(config, "experts"),
      .top_k = Get<int>(config, "top_k"),
      .softmax_over = Choice<ops::SoftmaxOver>(config, "softmax_over",
                                               {{"experts", experts}, {"chosen", chosen}}),
      .norm_place = Place(config),
      .activation = ActivationOf(config),
  };
}

model::LinkSpec Link(const py::handle& config) {
  using enum model::LinkKind;
  return {
      Choice<model::LinkKind>(
          config, "kind",
          {{"full", full}, {"low_rank", low_rank}, {"diagonal", diagonal}, {"constant", constant}}),
      Get<std::optional<int>>(config, "rank")};
}

bool IsLink(const py::handle& config) { return py::hasattr(config, "kind"); }
bool IsRouted(const py::handle& config) { return py::hasattr(config, "experts"); }

model::LayerSpec Layer(const py::handle& config) {
  model::LayerSpec layer{};
  layer.parallel = Get<bool>(config, "parallel");
  const py::object attention = config.attr("attention");
  const py::object ffn = config.attr("ffn");
  if (!attention.is_none()) {
    if (IsLink(attention)) {
      layer.attention_link = Link(attention);
    } else {
      layer.attention = Attention(attention);
    }
  }
  if (!ffn.is_none()) {
    if (IsLink(ffn)) {
      layer.ffn_link = Link(ffn);
    } else if (IsRouted(ffn)) {
      layer.routed_ffn = RoutedFfn(ffn);
    } else {
      layer.ffn = Ffn(ffn);
    }
  }
  return layer;
}

}  // namespace

model::ModelSpec SpecFromPython(const py::handle& config) {
  model::ModelSpec spec{
      .vocab_size = Get<int>(config, "vocab_size"),
      .n_channels = Get<int>(config, "n_channels"),
      .norm_divisor = Get<int>(config, "norm_divisor"),
      .norm_eps = Get<float>(config, "norm_eps"),
      .tied_head = Get<bool>(config, "tied_head"),
      .max_positions = Get<int>(config, "max_positions"),
      .layers = {},
      .norm = Choice<ops::NormKind>(config, "norm",
                                    {{"rms", ops::NormKind::rms}, {"layer", ops::NormKind::layer}}),
      .norm_offset = Get<float>(config, "norm_offset"),
      .embedding_scale = Get<float>(config, "embedding_scale"),
      .learned_positions = std::nullopt,
      .position_offset = Get<int>(config, "position_offset"),
      .logit_soft_cap = Get<std::optional<float>>(config, "logit_soft_cap"),
      .causal = Get<bool>(config, "causal"),
      .token_types = Get<int>(config, "token_types"),
      .embedding_norm = Get<bool>(config, "embedding_norm"),
      .final_norm = Get<bool>(config, "final_norm"),
  };
  if (Get<bool>(config, "learned_positions")) {
    spec.learned_positions = spec.max_positions + spec.position_offset;
  }
  for (const py::handle layer : config.attr("layers")) spec.layers.push_back(Layer(layer));
  model::Validate(spec);
  return spec;
}

}  // namespace slimformer::bindings
