#include "bindings/spec_from_python.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
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

std::optional<model::RotarySpec> Rotary(const py::handle& rope) {
  if (rope.is_none()) return std::nullopt;
  const py::array frequencies = rope.attr("inverse_frequencies")();
  const Array<float> checked = Checked<float>(frequencies, 1, "rope inverse_frequencies");
  return model::RotarySpec{{checked.data(), checked.data() + checked.size()}};
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
  };
}

model::FfnSpec Ffn(const py::handle& config) {
  return {.n_neurons = Get<int>(config, "n_neurons"), .bias = Get<bool>(config, "bias")};
}

model::LinkSpec Link(const py::handle& config) {
  const auto kind = Get<std::string>(config, "kind");
  const auto rank = Get<std::optional<int>>(config, "rank");
  if (kind == "full") return {model::LinkKind::full, rank};
  if (kind == "low_rank") return {model::LinkKind::low_rank, rank};
  if (kind == "diagonal") return {model::LinkKind::diagonal, rank};
  throw Error(ErrorKind::config, "link kind: cannot use " + kind);
}

bool IsLink(const py::handle& config) { return py::hasattr(config, "kind"); }

model::LayerSpec Layer(const py::handle& config) {
  model::LayerSpec layer;
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
  };
  for (const py::handle layer : config.attr("layers")) spec.layers.push_back(Layer(layer));
  model::Validate(spec);
  return spec;
}

}  // namespace slimformer::bindings
