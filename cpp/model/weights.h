// The parameters of a model: packed once, immutable, shared by every session and thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "model/spec.h"
#include "tensor/packed_matrix.h"

namespace slimformer::model {

using Matrix = std::optional<tensor::PackedMatrix>;  // has a value once loading has finished
using Vector = std::vector<float>;

struct LinearWeights {
  Matrix weight;  // [outputs, inputs]
  Vector bias;    // [outputs], empty where the layer has none

  const float* BiasData() const { return bias.empty() ? nullptr : bias.data(); }
};

struct NormWeights {
  Vector weight;  // [n], the offset included; empty where there is no such norm
  Vector bias;    // [n], empty but for layer norm

  bool exists() const { return !weight.empty(); }
};

struct AttentionWeights {
  NormWeights norm;       // [n_channels]
  NormWeights q_norm;     // [head_dim], or [n_heads * head_dim]
  NormWeights k_norm;     // [head_dim], or [n_kv_heads * head_dim]
  NormWeights post_norm;  // [n_channels]
  LinearWeights q;        // [n_heads * head_dim, n_channels]
  LinearWeights k;        // [n_kv_heads * head_dim, n_channels]
  LinearWeights v;        // [n_kv_heads * value_dim, n_channels]
  LinearWeights o;        // [n_channels, n_heads * value_dim]
};

struct FfnWeights {
  NormWeights norm;       // [n_channels]
  NormWeights post_norm;  // [n_channels]
  LinearWeights gate;     // [n_neurons, n_channels], without weight where the FFN is not gated
  LinearWeights up;       // [n_neurons, n_channels]
  LinearWeights down;     // [n_channels, n_neurons]
};

struct RoutedFfnWeights {
  NormWeights norm;                 // [n_channels]
  NormWeights post_norm;            // [n_channels]
  Matrix router;                    // [experts, n_channels], float32 always
  std::vector<FfnWeights> experts;  // without norms of their own
};

struct FullLink {
  Matrix weight;  // [n_channels, n_channels]
};
struct LowRankLink {
  Matrix down;  // [rank, n_channels]
  Matrix up;    // [n_channels, rank]
};
struct DiagonalLink {
  Vector weight;  // [n_channels]
};
struct ConstantLink {
  Vector bias;  // [n_channels]
};

struct LinkWeights {
  NormWeights norm;  // [n_channels], none before a constant
  std::variant<FullLink, LowRankLink, DiagonalLink, ConstantLink> map;
};

using AttentionBlock = std::variant<std::monostate, AttentionWeights, LinkWeights>;
using FfnBlock = std::variant<std::monostate, FfnWeights, RoutedFfnWeights, LinkWeights>;

struct LayerWeights {
  AttentionBlock attention;
  FfnBlock ffn;
};

struct Weights {
  ModelSpec spec;
  const kernels::KernelTable& kernels;
  tensor::WeightType type;
  std::size_t bytes = 0;

  Matrix embedding;            // [vocab_size, n_channels]
  Vector positions;            // [learned_positions, n_channels], empty where none are learned
  Vector token_types;          // [token_types, n_channels], empty where there are none
  NormWeights embedding_norm;  // [n_channels]
  std::vector<LayerWeights> layers;
  NormWeights final_norm;  // [n_channels]
  Matrix untied_head;      // [vocab_size, n_channels], absent where the head is tied

  // Every tensor by its name in slimformer.config; the pointers are to members above.
  std::map<std::string, std::variant<const Matrix*, const Vector*>> tensors;

  const tensor::PackedMatrix& head() const { return spec.tied_head ? *embedding : *untied_head; }
};

// A tensor as a checkpoint holds it, row-major and contiguous.
struct TensorSource {
  tensor::SourceType type;
  const void* data;
  std::span<const std::int64_t> shape;
  bool kept = false;  // values of a vector are as Weights keeps them, any offset added already
};

// A matrix as it was packed before, for kernels of the same layout.
struct PackedSource {
  tensor::WeightType type;
  bool sparse;
  std::shared_ptr<const std::byte> data;
  std::size_t bytes;
};

// Takes a model's tensors in any order and packs each as it arrives, so that memory never holds
// more than the packed model and the tensor that is being read. Names are those of
// slimformer.config; they are resolved here and nowhere later.
class WeightsBuilder {
 public:
  WeightsBuilder(ModelSpec spec, tensor::WeightType type, tensor::Form form,
                 const kernels::KernelTable& kernels);

  // Error(format) for a name the model does not have, a tensor that was loaded before, another
  // shape than the spec's, or a value that is not finite (in the packed type).
  void Load(const std::string& name, const TensorSource& source, ThreadPool& pool);

  // The same for a matrix that need not be packed; its values are not looked at.
  void Map(const std::string& name, PackedSource source);

  // Error(format) where a tensor is missing. The builder is spent afterwards.
  std::shared_ptr<const Weights> Finish();

 private:
  // How far an error of a matrix goes. int4 loses much the same share of every matrix; but a row of
  // the embedding is all that its token begins with, nothing comes after the head, and several
  // query heads read what shared keys and values lost. Those matrices are kept as int8. What a
  // router loses decides which experts run: it is always float32.
  enum class Reach { own, wide, choice };

  struct Slot {
    std::vector<std::size_t> shape;
    std::variant<Matrix*, Vector*> target;
    Reach reach = Reach::own;
    float offset = 0.0F;  // added to the values of a vector
    bool loaded = false;
  };

  void AddMatrix(const std::string& name, Matrix& target, std::size_t rows, std::size_t cols,
                 Reach reach = Reach::own);
  void AddVector(const std::string& name, Vector& target, std::size_t size);
  void AddTable(const std::string& name, Vector& target, std::size_t rows);
  void AddNorm(const std::string& name, NormWeights& target, std::size_t size);
  void AddLinear(const std::string& name, LinearWeights& target, std::size_t rows, std::size_t cols,
                 bool bias, Reach reach = Reach::own);
  void AddAttention(const std::string& prefix, const AttentionSpec& spec, AttentionBlock& target);
  void AddFfn(const std::string& prefix, const FfnSpec& spec, FfnBlock& target);
  void AddRoutedFfn(const std::string& prefix, const RoutedFfnSpec& spec, FfnBlock& target);
  void AddFfnLayers(const std::string& prefix, std::size_t n_neurons, bool gated, bool bias,
                    FfnWeights& target);
  // The norms of a sub-block that are at that place.
  void AddNorms(const std::string& prefix, NormPlace place, NormWeights& norm,
                NormWeights& post_norm);
  void AddLink(const std::string& prefix, const LinkSpec& spec, LinkWeights& target);
  Slot& Open(const std::string& name);
  tensor::WeightType PackedType(const Slot& slot) const;

  std::shared_ptr<Weights> weights_;
  tensor::Form form_;
  std::map<std::string, Slot> slots_;
};

}  // namespace slimformer::model
