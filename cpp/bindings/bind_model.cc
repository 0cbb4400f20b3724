#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/packed_model.h"
#include "bindings/signal_poll.h"
#include "bindings/spec_from_python.h"

namespace slimformer::bindings {
namespace {

using Sessions = std::vector<std::shared_ptr<model::Session>>;

// A batch with its own copy of all tokens.
class Batch {
 public:
  Batch(const Sessions& sessions, const std::vector<py::array>& tokens) {
    if (sessions.size() != tokens.size()) {
      throw Error(ErrorKind::data, std::to_string(sessions.size()) + " sessions, but tokens for " +
                                       std::to_string(tokens.size()));
    }
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      if (sessions[i] == nullptr) throw Error(ErrorKind::data, "a session is None");
      tokens_.push_back(CopyTokens(tokens[i], "tokens"));
      sequences_.push_back({sessions[i].get(), tokens_.back()});
      rows_ += tokens_.back().size();
    }
  }

  const std::vector<model::SequenceTokens>& sequences() const { return sequences_; }
  std::size_t rows() const { return rows_; }

 private:
  std::vector<std::vector<std::int32_t>> tokens_;
  std::vector<model::SequenceTokens> sequences_;
  std::size_t rows_ = 0;
};

std::size_t Channels(const PackedModel& model) {
  return static_cast<std::size_t>(model.transformer().weights()->spec.n_channels);
}

std::size_t VocabSize(const PackedModel& model) {
  return static_cast<std::size_t>(model.transformer().weights()->spec.vocab_size);
}

Array<float> Forward(const PackedModel& model, const Sessions& sessions,
                     const std::vector<py::array>& tokens, const std::string& logits) {
  const Batch batch(sessions, tokens);
  const model::LogitsRows rows = LogitsRowsNamed(logits);
  std::size_t n = 0;
  if (rows == model::LogitsRows::last) n = sessions.size();
  if (rows == model::LogitsRows::all) n = batch.rows();
  const model::Transformer& transformer = model.transformer();
  Array<float> result = Empty<float>(n, VocabSize(model));
  float* data = result.mutable_data();
  const py::gil_scoped_release release;
  transformer.Forward(batch.sequences(), rows, data, SignalPoll());
  return result;
}

std::vector<Array<float>> Score(const PackedModel& model, const Sessions& sessions,
                                const std::vector<py::array>& tokens) {
  const Batch batch(sessions, tokens);
  std::vector<float> scores(batch.rows());
  const model::Transformer& transformer = model.transformer();
  {
    const py::gil_scoped_release release;
    transformer.Score(batch.sequences(), scores.data(), SignalPoll());
  }
  std::vector<Array<float>> result;
  const float* next = scores.data();
  for (const model::SequenceTokens& sequence : batch.sequences()) {
    const std::size_t n = sequence.tokens.size();
    result.emplace_back(static_cast<py::ssize_t>(n - 1), next);
    next += n;
  }
  return result;
}

using TapKey = std::pair<std::size_t, std::string>;

std::size_t RequireSite(const model::Plan& plan, const TapKey& key, std::size_t first,
                        std::size_t last) {
  const auto width = model::SiteWidth(plan, key.first, model::SiteNamed(key.second));
  if (!width || key.first < first || key.first >= last) {
    throw Error(ErrorKind::config, "layer " + std::to_string(key.first) +
                                       " does not pass the tap " + key.second + " in this run");
  }
  return *width;
}

std::vector<std::size_t> CheckLengths(const std::vector<py::ssize_t>& lengths, std::size_t rows,
                                      std::size_t limit) {
  std::vector<std::size_t> checked;
  std::size_t sum = 0;
  for (const py::ssize_t length : lengths) {
    if (length < 1) throw Error(ErrorKind::data, "lengths: every sequence needs a row");
    if (static_cast<std::size_t>(length) > limit) {
      throw Error(ErrorKind::context_length, "a sequence of " + std::to_string(length) +
                                                 " rows is longer than the model's limit of " +
                                                 std::to_string(limit) + " positions");
    }
    checked.push_back(static_cast<std::size_t>(length));
    sum += checked.back();
  }
  if (sum != rows) {
    throw Error(ErrorKind::data, "lengths: expected a sum of " + std::to_string(rows) +
                                     ", the rows of hidden, found " + std::to_string(sum));
  }
  return checked;
}

Array<float> Embed(const PackedModel& model, const py::array& tokens,
                   const std::optional<std::vector<py::ssize_t>>& lengths) {
  const std::vector<std::int32_t> ids = CopyTokens(tokens, "tokens");
  const model::Transformer& transformer = model.transformer();
  const model::ModelSpec& spec = transformer.weights()->spec;
  std::vector<std::size_t> checked{ids.size()};
  if (lengths || spec.learned_positions) {
    std::vector<py::ssize_t> one;
    if (!ids.empty()) one.push_back(static_cast<py::ssize_t>(ids.size()));
    checked = CheckLengths(lengths.value_or(one), ids.size(),
                           static_cast<std::size_t>(spec.max_positions));
  }
  Array<float> hidden = Empty<float>(ids.size(), Channels(model));
  float* data = hidden.mutable_data();
  const py::gil_scoped_release release;
  transformer.Embed(ids, checked, data);
  return hidden;
}

using Captured = std::map<TapKey, Array<float>>;

std::pair<Array<float>, Captured> RunLayers(
    const PackedModel& model, const py::array& hidden, const std::vector<py::ssize_t>& lengths,
    std::size_t first, std::size_t last, const std::shared_ptr<model::Plan>& plan,
    const std::optional<std::map<TapKey, std::shared_ptr<ops::Moments>>>& moments,
    const std::vector<TapKey>& capture) {
  const model::Transformer& transformer = model.transformer();
  const model::ModelSpec& spec = transformer.weights()->spec;
  const model::Plan& used = plan == nullptr ? *transformer.whole_plan() : *plan;
  if (&used.weights() != transformer.weights().get()) {
    throw Error(ErrorKind::data, "the plan belongs to another model");
  }
  if (first > last || last > spec.layers.size()) {
    throw Error(ErrorKind::config, "layers " + std::to_string(first) + " to " +
                                       std::to_string(last) + ": the model has " +
                                       std::to_string(spec.layers.size()));
  }
  const Array<float> input = CheckedRows<float>(hidden, Channels(model), "hidden");
  const auto rows = static_cast<std::size_t>(input.shape(0));
  const auto checked_lengths =
      CheckLengths(lengths, rows, static_cast<std::size_t>(spec.max_positions));

  model::Taps taps;
  if (moments) {
    for (const auto& [key, sums] : *moments) {
      const std::size_t width = RequireSite(used, key, first, last);
      if (sums == nullptr || sums->width() != width || sums->target_width() != 0) {
        throw Error(ErrorKind::data, "moments for the tap " + key.second + " of layer " +
                                         std::to_string(key.first) + ": expected width " +
                                         std::to_string(width) + " and no targets");
      }
      taps.AddMoments(key.first, model::SiteNamed(key.second), *sums);
    }
  }
  Captured captured;
  for (const TapKey& key : capture) {
    Array<float>& array =
        captured.insert_or_assign(key, Empty<float>(rows, RequireSite(used, key, first, last)))
            .first->second;
    taps.AddCapture(key.first, model::SiteNamed(key.second), array.mutable_data());
  }

  Array<float> output = Empty<float>(rows, Channels(model));
  std::copy_n(input.data(), input.size(), output.mutable_data());
  float* data = output.mutable_data();
  {
    const py::gil_scoped_release release;
    transformer.RunLayers(used, checked_lengths, first, last, taps, data, SignalPoll());
  }
  return {std::move(output), std::move(captured)};
}

// By name: a vector's values, or a matrix as it is packed with its type and form. Views of the
// model's memory, which they keep.
std::map<std::string, py::object> Tensors(const py::object& self) {
  const auto& weights = *self.cast<const PackedModel&>().transformer().weights();
  std::map<std::string, py::object> tensors;
  for (const auto& [name, tensor] : weights.tensors) {
    if (const auto* const* vector = std::get_if<const model::Vector*>(&tensor)) {
      tensors[name] = Array<float>(static_cast<py::ssize_t>((*vector)->size()), (*vector)->data());
      continue;
    }
    const tensor::PackedMatrix& matrix = **std::get<const model::Matrix*>(tensor);
    const Array<std::uint8_t> packed(static_cast<py::ssize_t>(matrix.bytes()),
                                     reinterpret_cast<const std::uint8_t*>(matrix.data()), self);
    tensors[name] = py::make_tuple(packed, WeightTypeName(matrix.type()), matrix.is_sparse());
  }
  return tensors;
}

Array<float> Logits(const PackedModel& model, const py::array& hidden) {
  const model::Transformer& transformer = model.transformer();
  const Array<float> input = CheckedRows<float>(hidden, Channels(model), "hidden");
  const auto rows = static_cast<std::size_t>(input.shape(0));
  Array<float> logits = Empty<float>(rows, VocabSize(model));
  const float* source = input.data();
  float* data = logits.mutable_data();
  const py::gil_scoped_release release;
  transformer.Logits(source, rows, data, SignalPoll());
  return logits;
}

Array<float> ScoreHidden(const PackedModel& model, const py::array& hidden,
                         const py::array& targets) {
  const model::Transformer& transformer = model.transformer();
  const Array<float> input = CheckedRows<float>(hidden, Channels(model), "hidden");
  const std::vector<std::int32_t> ids = CopyTokens(targets, "targets");
  if (ids.size() != static_cast<std::size_t>(input.shape(0))) {
    throw Error(ErrorKind::data, "targets: expected " + std::to_string(input.shape(0)) +
                                     ", one for each row of hidden, found " +
                                     std::to_string(ids.size()));
  }
  transformer.CheckTokens(ids);
  Array<float> scores = Empty<float>(ids.size());
  const float* source = input.data();
  float* data = scores.mutable_data();
  const py::gil_scoped_release release;
  transformer.ScoreHidden(source, ids, data, SignalPoll());
  return scores;
}

}  // namespace

PackedModel::PackedModel(model::ModelSpec spec, const std::string& weights,
                         const std::string& sparse, int threads,
                         const std::optional<std::string>& tier)
    : kernels_(KernelsNamed(tier)),
      pool_(ThreadPool::Shared(threads)),
      builder_(std::move(spec), WeightTypeNamed(weights), FormNamed(sparse), kernels_) {}

void PackedModel::LoadTensor(const std::string& name, const py::array& values, bool kept) {
  if (!IsPlain(values)) {
    throw Error(ErrorKind::data, "tensor " + name + ": expected a contiguous, aligned array");
  }
  const std::vector<std::int64_t> shape(values.shape(), values.shape() + values.ndim());
  const model::TensorSource source{SourceTypeOf(values, name), values.data(), shape, kept};
  const py::gil_scoped_release release;
  const std::lock_guard lock(loading_mutex_);
  builder_.Load(name, source, *pool_);
}

void PackedModel::MapTensor(const std::string& name, const py::array& packed,
                            const std::string& weights, bool sparse) {
  const Array<std::uint8_t> checked = Checked<std::uint8_t>(packed, 1, "tensor " + name);
  // The array is kept until the weights go, which may be while another thread runs Python.
  const auto* memory = reinterpret_cast<const std::byte*>(checked.data());
  const std::shared_ptr<const std::byte> data(memory,
                                              [owner = new py::array(packed)](const std::byte*) {
                                                const py::gil_scoped_acquire acquire;
                                                delete owner;
                                              });
  const std::lock_guard lock(loading_mutex_);
  builder_.Map(name,
               {WeightTypeNamed(weights), sparse, data, static_cast<std::size_t>(checked.size())});
}

void PackedModel::Finish() {
  const std::lock_guard lock(loading_mutex_);
  transformer_ = std::make_unique<const model::Transformer>(builder_.Finish(), pool_);
}

const model::Transformer& PackedModel::transformer() const {
  if (transformer_ == nullptr) {
    throw Error(ErrorKind::config, "the model has not been finished");
  }
  return *transformer_;
}

void BindModel(py::module_& module) {
  py::class_<PackedModel>(module, "PackedModel")
      .def(py::init([](const py::object& config, const std::string& weights,
                       const std::string& sparse, int threads,
                       const std::optional<std::string>& tier) {
             return std::make_unique<PackedModel>(SpecFromPython(config), weights, sparse, threads,
                                                  tier);
           }),
           py::arg("config"), py::kw_only(), py::arg("weights") = "bf16",
           py::arg("sparse") = "auto", py::arg("threads") = 0, py::arg("tier") = py::none())
      .def("load_tensor", &PackedModel::LoadTensor, py::arg("name"), py::arg("values"),
           py::kw_only(), py::arg("kept") = false)
      .def("map_tensor", &PackedModel::MapTensor, py::arg("name"), py::arg("packed"), py::kw_only(),
           py::arg("weights"), py::arg("sparse"))
      .def("finish", &PackedModel::Finish)
      .def("tensors", &Tensors)
      .def_property_readonly("tier",
                             [](const PackedModel& model) {
                               return std::string(kernels::TierName(model.kernels().tier));
                             })
      .def_property_readonly("threads",
                             [](const PackedModel& model) { return model.pool().size(); })
      .def_property_readonly(
          "weight_bytes",
          [](const PackedModel& model) { return model.transformer().weights()->bytes; })
      .def("forward", &Forward, py::arg("sessions"), py::arg("tokens"), py::kw_only(),
           py::arg("logits") = "last")
      .def("score", &Score, py::arg("sessions"), py::arg("tokens"))
      .def("embed", &Embed, py::arg("tokens"), py::arg("lengths") = py::none())
      .def("run_layers", &RunLayers, py::arg("hidden"), py::arg("lengths"), py::kw_only(),
           py::arg("first"), py::arg("last"), py::arg("plan") = py::none(),
           py::arg("moments") = py::none(), py::arg("capture") = py::tuple())
      .def("logits", &Logits, py::arg("hidden"))
      .def("score_hidden", &ScoreHidden, py::arg("hidden"), py::arg("targets"));
}

}  // namespace slimformer::bindings
