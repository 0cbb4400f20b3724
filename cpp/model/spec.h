// The blueprint of a model: what python/slimformer/config.py says, resolved for the core.
// Every dimension belongs to a layer; absence is nullopt, never 0.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "kernels/kernel_table.h"
#include "ops/norm.h"
#include "ops/routing.h"

namespace slimformer::model {

// Rotary position embedding. Pairs are (j, j + pairs) within a head.
struct RotarySpec {
  std::vector<float> inverse_frequencies;       // [pairs], radians per position
  float amplitude;                              // of cosines and sines
  std::optional<int> usual_length;              // longer sequences turn at other frequencies,
  std::vector<float> long_inverse_frequencies;  // [pairs], which are these

  // Those of a sequence that may come to so many positions, [pairs].
  const std::vector<float>& FrequenciesFor(std::size_t length) const {
    const bool is_long = usual_length && length > static_cast<std::size_t>(*usual_length);
    return is_long ? long_inverse_frequencies : inverse_frequencies;
  }

  bool operator==(const RotarySpec&) const = default;
};

// What a sub-block normalises: what it reads, what it adds to the stream, both, or the stream after
// that.
enum class NormPlace { before, after, both, stream };

// Queries and keys are normalised before they are rotated: head by head, or all heads as one.
enum class QkNorm { head, width };

struct QkNormSpec {
  QkNorm over;
  int q_divisor;  // RMSNorm divides the sum of squares of queries by this
  int k_divisor;
};

struct AttentionSpec {
  int n_heads;
  int n_kv_heads;
  int head_dim;              // width of a query or key head
  int value_dim;             // width of a value head
  std::vector<int> q_to_kv;  // [n_heads], the KV head each query head reads
  float scale;
  std::optional<RotarySpec> rotary;
  bool qkv_bias;
  bool output_bias;
  NormPlace norm_place;
  std::optional<int> window;  // positions that a position sees, itself included
  std::optional<float> soft_cap;
  std::optional<QkNormSpec> qk_norm;
};

struct FfnSpec {
  int n_neurons;
  bool bias;
  NormPlace norm_place;
  kernels::Activation activation;
  bool gated;
};

// An FFN of which a token runs the few experts that a router chooses, each a gated one.
struct RoutedFfnSpec {
  std::vector<int> experts;  // neurons of each
  int top_k;                 // experts that a token runs, all where there are fewer
  ops::SoftmaxOver softmax_over;
  NormPlace norm_place;
  kernels::Activation activation;
};

enum class LinkKind { full, low_rank, diagonal, constant };

// What stands in for a sub-block: a linear map of its normalised input, or a constant.
struct LinkSpec {
  LinkKind kind;
  std::optional<int> rank;  // low_rank only
};

// At most one of a sub-block, its other form and its link is present.
struct LayerSpec {
  std::optional<AttentionSpec> attention;
  std::optional<LinkSpec> attention_link;
  std::optional<FfnSpec> ffn;
  std::optional<RoutedFfnSpec> routed_ffn;
  std::optional<LinkSpec> ffn_link;
  bool parallel;  // both sub-blocks read the stream that enters the layer
};

struct ModelSpec {
  int vocab_size;
  int n_channels;
  int norm_divisor;  // RMSNorm divides the sum of squares by this
  float norm_eps;
  bool tied_head;
  int max_positions;
  std::vector<LayerSpec> layers;
  ops::NormKind norm;
  float norm_offset;  // added to the weights of all norms
  float embedding_scale;
  std::optional<int> learned_positions;  // rows of the table
  int position_offset;                   // row of position 0
  std::optional<float> logit_soft_cap;
  bool causal;
  int token_types;  // rows of the table, 0 where there is none
  bool embedding_norm;
  bool final_norm;
};

// Error(config) where a dimension is out of bounds or parts contradict each other: whatever
// passes can be packed and run without further checks of shapes.
void Validate(const ModelSpec& spec);

}  // namespace slimformer::model
