// What a session executes: the list of steps that a model and a mask come down to. Whatever is
// skipped is a step that is not there.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/weights.h"
#include "ops/attention.h"

namespace slimformer::model {

// Which structures run. Layers are counted from 0; skipping what a layer does not have is no
// error, since that layer then does what was asked for.
struct Mask {
  std::vector<int> skip_attention;
  std::vector<int> skip_ffn;
  std::optional<int> exit_after;               // the last layer that runs
  std::map<int, std::vector<int>> heads;       // query heads that are kept, by layer
  std::map<int, std::vector<int>> value_dims;  // entries of all value heads that are kept, by layer
  std::map<int, std::vector<int>> neurons;     // neurons that are kept, by layer
  std::map<int, std::vector<int>> experts;     // experts that are kept, by layer
  std::map<int, std::map<int, std::vector<int>>> expert_neurons;  // by layer and expert
};

// Dimensions of a step are those of its own layer.
struct AttentionStep {
  std::size_t layer;
  const AttentionWeights* weights;
  std::size_t n_heads;
  std::size_t n_kv_heads;
  std::size_t head_dim;
  std::size_t value_dim;
  ops::ScoreRule scores;
  std::optional<QkNormSpec> qk_norm;
  std::optional<std::size_t> rotary;   // index of Plan::rotaries()
  std::vector<ops::HeadGroup> groups;  // the heads that are kept
  bool all_heads;
  // Of 0 and 1, where some heads are left out of a norm over the width of q or k; else empty.
  std::vector<float> q_mask;      // [n_heads * head_dim]
  std::vector<float> k_mask;      // [n_kv_heads * head_dim]
  std::vector<float> value_mask;  // [n_heads * value_dim] of 0 and 1, empty where all are kept
  NormPlace norm_place;
  std::size_t cache;  // index of the step's keys and values in a session's cache
};

struct FfnStep {
  std::size_t layer;
  const FfnWeights* weights;
  std::size_t n_neurons;
  NormPlace norm_place;
  kernels::ActivationKernel activation;
  std::vector<float> neuron_mask;  // [n_neurons] of 0 and 1, empty where all are kept
};

// Experts that are not kept are as good as not there: the router knows the others only.
struct RoutedFfnStep {
  std::size_t layer;
  const RoutedFfnWeights* weights;
  std::size_t n_neurons;                         // of all experts
  std::vector<std::size_t> experts;              // that are kept, ascending
  std::vector<std::size_t> first_neurons;        // of each of those, among all
  std::vector<std::vector<float>> neuron_masks;  // of each: [its neurons] of 0 and 1, or empty
  std::size_t top_k;
  ops::SoftmaxOver softmax_over;
  NormPlace norm_place;
  kernels::ActivationKernel activation;
};

enum class Place { attention, ffn };

// A linear map or a constant that stands in for a sub-block.
struct LinkStep {
  std::size_t layer;
  Place place;
  const LinkWeights* weights;
};

using Step = std::variant<AttentionStep, FfnStep, RoutedFfnStep, LinkStep>;

std::size_t LayerOf(const Step& step);
Place PlaceOf(const Step& step);

class Plan {
 public:
  // Error(config) where the mask names what the model does not have, or nothing would be left
  // of the heads, neurons or experts of a layer.
  Plan(std::shared_ptr<const Weights> weights, const Mask& mask);

  const Weights& weights() const { return *weights_; }
  const std::vector<Step>& steps() const { return steps_; }  // by layer, attention first
  const std::vector<RotarySpec>& rotaries() const { return rotaries_; }  // all distinct

  // One past the last layer that runs.
  std::size_t end_layer() const { return end_layer_; }

  // The last step that writes keys and values, 0 where none does: from it on, what a row becomes
  // matters to that row only.
  std::size_t last_attention() const;

  // Whether both sub-blocks of a layer run, and read what enters the layer.
  bool parallel(std::size_t layer) const { return parallel_[layer]; }

  // Whether both run the same steps of the same model.
  bool Equals(const Plan& other) const;

  // Names such as "layers.3.attention", in the order in which they run.
  std::vector<std::string> StepNames() const;

 private:
  void AddAttention(std::size_t layer, const AttentionWeights& weights, const Mask& mask);
  void AddFfn(std::size_t layer, const FfnWeights& weights, const Mask& mask);
  void AddRoutedFfn(std::size_t layer, const RoutedFfnWeights& weights, const Mask& mask);
  std::size_t RotaryIndex(const RotarySpec& rotary);

  std::shared_ptr<const Weights> weights_;
  std::vector<Step> steps_;
  std::vector<RotarySpec> rotaries_;
  std::vector<bool> parallel_;  // [layers]
  std::size_t end_layer_ = 0;
  std::size_t attention_steps_ = 0;
};

}  // namespace slimformer::model
