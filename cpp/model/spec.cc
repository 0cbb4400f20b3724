#include "model/spec.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"

namespace slimformer::model {
namespace {

constexpr int kMaxDimension = 1 << 24;
constexpr std::size_t kMaxLayers = 4096;

void Check(bool condition, const std::string& message) {
  if (!condition) throw Error(ErrorKind::config, "model: " + message);
}

void CheckDimension(const std::string& name, int value) {
  Check(value >= 1 && value <= kMaxDimension, name + ": expected 1 to " +
                                                  std::to_string(kMaxDimension) + ", found " +
                                                  std::to_string(value));
}

void CheckPositive(const std::string& name, float value) {
  Check(std::isfinite(value) && value > 0, name + ": expected a number above 0");
}

void CheckAttention(const std::string& where, const AttentionSpec& attention) {
  CheckDimension(where + "n_heads", attention.n_heads);
  CheckDimension(where + "n_kv_heads", attention.n_kv_heads);
  CheckDimension(where + "head_dim", attention.head_dim);
  CheckDimension(where + "value_dim", attention.value_dim);
  Check(std::isfinite(attention.scale), where + "scale: expected a finite number");
  Check(attention.q_to_kv.size() == static_cast<std::size_t>(attention.n_heads),
        where + "q_to_kv: expected " + std::to_string(attention.n_heads) + " entries, found " +
            std::to_string(attention.q_to_kv.size()));
  for (const int kv_head : attention.q_to_kv) {
    Check(kv_head >= 0 && kv_head < attention.n_kv_heads,
          where + "q_to_kv: no KV head " + std::to_string(kv_head));
  }
  if (attention.window) CheckDimension(where + "window", *attention.window);
  if (attention.soft_cap) CheckPositive(where + "soft_cap", *attention.soft_cap);
  if (attention.qk_norm) {
    CheckDimension(where + "q_norm_divisor", attention.qk_norm->q_divisor);
    CheckDimension(where + "k_norm_divisor", attention.qk_norm->k_divisor);
  }
  if (!attention.rotary) return;
  const RotarySpec& rotary = *attention.rotary;
  Check(rotary.inverse_frequencies.size() <= static_cast<std::size_t>(attention.head_dim) / 2,
        where + "rope: more pairs than half of head_dim");
  CheckPositive(where + "rope amplitude", rotary.amplitude);
  Check(rotary.long_inverse_frequencies.size() ==
            (rotary.usual_length ? rotary.inverse_frequencies.size() : 0),
        where + "rope: expected one more frequency a pair where long sequences have their own");
  for (const auto* frequencies : {&rotary.inverse_frequencies, &rotary.long_inverse_frequencies}) {
    Check(std::ranges::all_of(*frequencies, [](float f) { return std::isfinite(f); }),
          where + "rope: expected finite frequencies");
  }
}

void CheckRoutedFfn(const std::string& where, const RoutedFfnSpec& ffn) {
  CheckDimension(where + "experts", static_cast<int>(ffn.experts.size()));
  std::size_t n_neurons = 0;
  for (const int neurons : ffn.experts) {
    CheckDimension(where + "neurons of an expert", neurons);
    n_neurons += static_cast<std::size_t>(neurons);
  }
  Check(n_neurons <= kMaxDimension, where + "experts: too many neurons in all");
  CheckDimension(where + "top_k", ffn.top_k);
}

void CheckLink(const std::string& where, const LinkSpec& link) {
  Check((link.kind == LinkKind::low_rank) == link.rank.has_value(),
        where + "link: a rank belongs to low_rank links and to no other");
  if (link.rank) CheckDimension(where + "link rank", *link.rank);
}

}  // namespace

void Validate(const ModelSpec& spec) {
  CheckDimension("vocab_size", spec.vocab_size);
  CheckDimension("n_channels", spec.n_channels);
  CheckDimension("norm_divisor", spec.norm_divisor);
  CheckDimension("max_positions", spec.max_positions);
  CheckPositive("norm_eps", spec.norm_eps);
  Check(std::isfinite(spec.norm_offset), "norm_offset: expected a finite number");
  CheckPositive("embedding_scale", spec.embedding_scale);
  if (spec.logit_soft_cap) CheckPositive("logit_soft_cap", *spec.logit_soft_cap);
  if (spec.learned_positions) {
    CheckDimension("learned_positions", *spec.learned_positions);
    Check(spec.position_offset >= 0 &&
              *spec.learned_positions - spec.position_offset >= spec.max_positions,
          "learned_positions: expected a row for each of max_positions");
  }
  Check(spec.token_types >= 0 && spec.token_types <= kMaxDimension,
        "token_types: expected 0 to " + std::to_string(kMaxDimension));
  Check(spec.layers.size() <= kMaxLayers,
        "expected at most " + std::to_string(kMaxLayers) + " layers");
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const std::string where = "layer " + std::to_string(i) + ": ";
    Check(!(layer.attention && layer.attention_link), where + "both attention and its link");
    Check(layer.ffn.has_value() + layer.routed_ffn.has_value() + layer.ffn_link.has_value() <= 1,
          where + "more than one of FFN, routed FFN and link");
    Check(spec.causal || !layer.attention || !layer.attention->window,
          where + "window: expected none in an encoder");
    if (layer.attention) CheckAttention(where, *layer.attention);
    if (layer.attention_link) CheckLink(where, *layer.attention_link);
    if (layer.ffn) CheckDimension(where + "n_neurons", layer.ffn->n_neurons);
    if (layer.routed_ffn) CheckRoutedFfn(where, *layer.routed_ffn);
    if (layer.ffn_link) CheckLink(where, *layer.ffn_link);
  }
}

}  // namespace slimformer::model
