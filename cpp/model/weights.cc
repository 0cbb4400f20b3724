#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "base/bf16.h"
#include "base/error.h"
#include "base/f16.h"

namespace slimformer::model {
namespace {

template <class T>
std::string ShapeText(const T& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

// The smallest magnitude, as bits of the source type, that has no finite value once packed: the
// infinity of the source type, or what bfloat16 rounds up to its own.
std::uint32_t FirstBadMagnitude(tensor::SourceType source, tensor::WeightType packed) {
  switch (source) {
    case tensor::SourceType::bf16:
      return 0x7f80U;
    case tensor::SourceType::f16:
      return 0x7c00U;
    case tensor::SourceType::f32:
      break;
  }
  return packed == tensor::WeightType::bf16 ? 0x7f7f8000U : 0x7f800000U;
}

template <class Bits>
bool AllBelow(const void* data, std::size_t begin, std::size_t end, std::uint32_t limit) {
  constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
  const Bits* values = static_cast<const Bits*>(data);
  Bits largest = 0;
  for (std::size_t i = begin; i < end; ++i) {
    largest = std::max(largest, static_cast<Bits>(values[i] & kMagnitude));
  }
  return largest < limit;
}

bool AllFinite(const TensorSource& source, std::size_t size, tensor::WeightType packed,
               ThreadPool& pool) {
  constexpr std::size_t kTaskValues = std::size_t{1} << 18;
  const std::uint32_t limit = FirstBadMagnitude(source.type, packed);
  const auto below =
      source.type == tensor::SourceType::f32 ? AllBelow<std::uint32_t> : AllBelow<std::uint16_t>;
  std::atomic<bool> finite = true;
  pool.ParallelFor((size + kTaskValues - 1) / kTaskValues, [&](std::size_t task, int) {
    const std::size_t begin = task * kTaskValues;
    if (!below(source.data, begin, std::min(size, begin + kTaskValues), limit)) finite = false;
  });
  return finite;
}

Vector Widen(const TensorSource& source, std::size_t size) {
  Vector values(size);
  if (source.type == tensor::SourceType::f32) {
    std::memcpy(values.data(), source.data, size * sizeof(float));
    return values;
  }
  const auto* bits = static_cast<const std::uint16_t*>(source.data);
  const auto widen = source.type == tensor::SourceType::bf16 ? FloatFromBf16 : FloatFromF16;
  std::transform(bits, bits + size, values.begin(), widen);
  return values;
}

}  // namespace

WeightsBuilder::WeightsBuilder(ModelSpec spec, tensor::WeightType type, tensor::Form form,
                               const kernels::KernelTable& kernels)
    : weights_(std::make_shared<Weights>(
          Weights{std::move(spec), kernels, type, 0, {}, {}, {}, {}, {}, {}, {}, {}})),
      form_(form) {
  Weights& w = *weights_;
  const auto vocab_size = static_cast<std::size_t>(w.spec.vocab_size);
  const auto n_channels = static_cast<std::size_t>(w.spec.n_channels);
  AddMatrix("embedding.weight", w.embedding, vocab_size, n_channels, Reach::wide);
  if (w.spec.learned_positions) {
    AddTable("positions.weight", w.positions, static_cast<std::size_t>(*w.spec.learned_positions));
  }
  if (w.spec.token_types > 0) {
    AddTable("token_types.weight", w.token_types, static_cast<std::size_t>(w.spec.token_types));
  }
  if (w.spec.embedding_norm) AddNorm("embedding_norm", w.embedding_norm, n_channels);
  w.layers.resize(w.spec.layers.size());  // slots point into it: it must not grow from here on
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    const LayerSpec& layer = w.spec.layers[i];
    const std::string prefix = "layers." + std::to_string(i);
    if (layer.attention)
      AddAttention(prefix + ".attention", *layer.attention, w.layers[i].attention);
    if (layer.attention_link) {
      AddLink(prefix + ".attention", *layer.attention_link,
              w.layers[i].attention.emplace<LinkWeights>());
    }
    if (layer.ffn) AddFfn(prefix + ".ffn", *layer.ffn, w.layers[i].ffn);
    if (layer.routed_ffn) AddRoutedFfn(prefix + ".ffn", *layer.routed_ffn, w.layers[i].ffn);
    if (layer.ffn_link) {
      AddLink(prefix + ".ffn", *layer.ffn_link, w.layers[i].ffn.emplace<LinkWeights>());
    }
  }
  if (w.spec.final_norm) AddNorm("final_norm", w.final_norm, n_channels);
  if (!w.spec.tied_head) {
    AddMatrix("head.weight", w.untied_head, vocab_size, n_channels, Reach::wide);
  }
}

void WeightsBuilder::AddMatrix(const std::string& name, Matrix& target, std::size_t rows,
                               std::size_t cols, Reach reach) {
  slots_[name] = {{rows, cols}, &target, reach};
}

void WeightsBuilder::AddVector(const std::string& name, Vector& target, std::size_t size) {
  slots_[name] = {{size}, &target};
}

void WeightsBuilder::AddTable(const std::string& name, Vector& target, std::size_t rows) {
  slots_[name] = {{rows, static_cast<std::size_t>(weights_->spec.n_channels)}, &target};
}

void WeightsBuilder::AddNorm(const std::string& name, NormWeights& target, std::size_t size) {
  AddVector(name + ".weight", target.weight, size);
  slots_[name + ".weight"].offset = weights_->spec.norm_offset;
  if (weights_->spec.norm == ops::NormKind::layer) AddVector(name + ".bias", target.bias, size);
}

void WeightsBuilder::AddLinear(const std::string& name, LinearWeights& target, std::size_t rows,
                               std::size_t cols, bool bias, Reach reach) {
  AddMatrix(name + ".weight", target.weight, rows, cols, reach);
  if (bias) AddVector(name + ".bias", target.bias, rows);
}

void WeightsBuilder::AddAttention(const std::string& prefix, const AttentionSpec& spec,
                                  AttentionBlock& target) {
  auto& attention = target.emplace<AttentionWeights>();
  const auto n_channels = static_cast<std::size_t>(weights_->spec.n_channels);
  const auto n_heads = static_cast<std::size_t>(spec.n_heads);
  const auto n_kv_heads = static_cast<std::size_t>(spec.n_kv_heads);
  const auto head_dim = static_cast<std::size_t>(spec.head_dim);
  const auto value_dim = static_cast<std::size_t>(spec.value_dim);
  AddNorms(prefix, spec.norm_place, attention.norm, attention.post_norm);
  if (spec.qk_norm) {
    const bool width = spec.qk_norm->over == QkNorm::width;
    AddNorm(prefix + ".q_norm", attention.q_norm, width ? n_heads * head_dim : head_dim);
    AddNorm(prefix + ".k_norm", attention.k_norm, width ? n_kv_heads * head_dim : head_dim);
  }
  AddLinear(prefix + ".q", attention.q, n_heads * head_dim, n_channels, spec.qkv_bias);
  const Reach reach = n_heads > n_kv_heads ? Reach::wide : Reach::own;
  AddLinear(prefix + ".k", attention.k, n_kv_heads * head_dim, n_channels, spec.qkv_bias, reach);
  AddLinear(prefix + ".v", attention.v, n_kv_heads * value_dim, n_channels, spec.qkv_bias, reach);
  AddLinear(prefix + ".o", attention.o, n_channels, n_heads * value_dim, spec.output_bias);
}

void WeightsBuilder::AddNorms(const std::string& prefix, NormPlace place, NormWeights& norm,
                              NormWeights& post_norm) {
  const auto n_channels = static_cast<std::size_t>(weights_->spec.n_channels);
  if (place == NormPlace::before || place == NormPlace::both) {
    AddNorm(prefix + ".norm", norm, n_channels);
  }
  if (place != NormPlace::before) AddNorm(prefix + ".post_norm", post_norm, n_channels);
}

void WeightsBuilder::AddFfn(const std::string& prefix, const FfnSpec& spec, FfnBlock& target) {
  auto& ffn = target.emplace<FfnWeights>();
  AddNorms(prefix, spec.norm_place, ffn.norm, ffn.post_norm);
  AddFfnLayers(prefix, static_cast<std::size_t>(spec.n_neurons), spec.gated, spec.bias, ffn);
}

void WeightsBuilder::AddRoutedFfn(const std::string& prefix, const RoutedFfnSpec& spec,
                                  FfnBlock& target) {
  auto& ffn = target.emplace<RoutedFfnWeights>();
  AddNorms(prefix, spec.norm_place, ffn.norm, ffn.post_norm);
  AddMatrix(prefix + ".router.weight", ffn.router, spec.experts.size(),
            static_cast<std::size_t>(weights_->spec.n_channels), Reach::choice);
  ffn.experts.resize(spec.experts.size());  // slots point into it
  for (std::size_t e = 0; e < spec.experts.size(); ++e) {
    AddFfnLayers(prefix + ".experts." + std::to_string(e),
                 static_cast<std::size_t>(spec.experts[e]), true, false, ffn.experts[e]);
  }
}

void WeightsBuilder::AddFfnLayers(const std::string& prefix, std::size_t n_neurons, bool gated,
                                  bool bias, FfnWeights& target) {
  const auto n_channels = static_cast<std::size_t>(weights_->spec.n_channels);
  if (gated) AddLinear(prefix + ".gate", target.gate, n_neurons, n_channels, bias);
  AddLinear(prefix + ".up", target.up, n_neurons, n_channels, bias);
  AddLinear(prefix + ".down", target.down, n_channels, n_neurons, bias);
}

void WeightsBuilder::AddLink(const std::string& prefix, const LinkSpec& spec, LinkWeights& target) {
  const auto n_channels = static_cast<std::size_t>(weights_->spec.n_channels);
  if (spec.kind != LinkKind::constant) AddNorm(prefix + ".norm", target.norm, n_channels);
  switch (spec.kind) {
    case LinkKind::full: {
      auto& link = target.map.emplace<FullLink>();
      AddMatrix(prefix + ".link.weight", link.weight, n_channels, n_channels);
      break;
    }
    case LinkKind::low_rank: {
      auto& link = target.map.emplace<LowRankLink>();
      const auto rank = static_cast<std::size_t>(spec.rank.value());
      AddMatrix(prefix + ".link.down", link.down, rank, n_channels);
      AddMatrix(prefix + ".link.up", link.up, n_channels, rank);
      break;
    }
    case LinkKind::diagonal: {
      auto& link = target.map.emplace<DiagonalLink>();
      AddVector(prefix + ".link.weight", link.weight, n_channels);
      break;
    }
    case LinkKind::constant: {
      auto& link = target.map.emplace<ConstantLink>();
      AddVector(prefix + ".link.bias", link.bias, n_channels);
      break;
    }
  }
}

tensor::WeightType WeightsBuilder::PackedType(const Slot& slot) const {
  if (std::holds_alternative<Vector*>(slot.target)) return tensor::WeightType::f32;
  if (slot.reach == Reach::choice) return tensor::WeightType::f32;
  const bool keep = slot.reach == Reach::wide && weights_->type == tensor::WeightType::int4;
  return keep ? tensor::WeightType::int8 : weights_->type;
}

// The slot of a tensor that is still to come.
WeightsBuilder::Slot& WeightsBuilder::Open(const std::string& name) {
  if (weights_ == nullptr) throw Error(ErrorKind::config, "the model has been finished");
  const auto found = slots_.find(name);
  if (found == slots_.end()) {
    throw Error(ErrorKind::format, "tensor " + name + ": the model has no tensor of that name");
  }
  if (found->second.loaded) throw Error(ErrorKind::format, "tensor " + name + ": loaded twice");
  return found->second;
}

void WeightsBuilder::Map(const std::string& name, PackedSource source) {
  Slot& slot = Open(name);
  Matrix* const* matrix = std::get_if<Matrix*>(&slot.target);
  if (matrix == nullptr || source.type != PackedType(slot)) {
    throw Error(ErrorKind::format, "tensor " + name + ": not packed as this model keeps it");
  }
  try {
    (*matrix)->emplace(tensor::PackedMatrix::Map(weights_->kernels, source.type, source.sparse,
                                                 slot.shape[0], slot.shape[1],
                                                 std::move(source.data), source.bytes));
  } catch (const Error& error) {
    throw Error(error.kind(), "tensor " + name + ": " + error.what());
  }
  weights_->bytes += source.bytes;
  slot.loaded = true;
}

void WeightsBuilder::Load(const std::string& name, const TensorSource& source, ThreadPool& pool) {
  Slot& slot = Open(name);
  if (!std::ranges::equal(slot.shape, source.shape,
                          [](std::size_t a, std::int64_t b) { return std::cmp_equal(a, b); })) {
    throw Error(ErrorKind::format, "tensor " + name + ": expected shape " + ShapeText(slot.shape) +
                                       ", found " + ShapeText(source.shape));
  }
  const bool is_vector = std::holds_alternative<Vector*>(slot.target);
  const tensor::WeightType packed = PackedType(slot);
  std::size_t size = 1;
  for (const std::size_t dimension : slot.shape) size *= dimension;
  if (!AllFinite(source, size, packed, pool)) {
    throw Error(ErrorKind::format, "tensor " + name + ": holds values that are not finite numbers" +
                                       (packed == tensor::WeightType::bf16 ? " in bfloat16" : ""));
  }
  if (is_vector) {
    Vector& values = *std::get<Vector*>(slot.target);
    values = Widen(source, size);
    if (slot.offset != 0.0F && !source.kept) {
      for (float& value : values) value += slot.offset;
    }
    weights_->bytes += size * sizeof(float);
  } else {
    const std::size_t rows = slot.shape[0];
    const std::size_t cols = slot.shape[1];
    const tensor::PackedMatrix& matrix =
        std::get<Matrix*>(slot.target)
            ->emplace(tensor::PackedMatrix::Pack(weights_->kernels, packed,
                                                 {source.type, source.data, cols}, rows, cols, pool,
                                                 form_));
    weights_->bytes += matrix.bytes();
  }
  slot.loaded = true;
}

std::shared_ptr<const Weights> WeightsBuilder::Finish() {
  if (weights_ == nullptr) throw Error(ErrorKind::config, "the model has been finished");
  for (const auto& [name, slot] : slots_) {
    if (!slot.loaded) throw Error(ErrorKind::format, "tensor " + name + ": missing");
  }
  for (const auto& [name, slot] : slots_) {
    std::visit([&](const auto* tensor) { weights_->tensors[name] = tensor; }, slot.target);
  }
  slots_.clear();
  return std::exchange(weights_, nullptr);
}

}  // namespace slimformer::model
