#include "bindings/names.h"

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace slimformer::bindings {
namespace {

namespace py = pybind11;

template <class T>
T Choose(const std::string& what, const std::string& name,
         std::span<const std::pair<std::string_view, T>> choices) {
  std::string known;
  for (const auto& [word, value] : choices) {
    if (word == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(word);
  }
  throw Error(ErrorKind::config, what + ": expected one of " + known + ", found " + name);
}

}  // namespace

tensor::WeightType WeightTypeNamed(const std::string& name) {
  return Choose<tensor::WeightType>("weights", name, tensor::kWeightTypes);
}

std::string WeightTypeName(tensor::WeightType type) {
  for (const auto& [word, value] : tensor::kWeightTypes) {
    if (value == type) return std::string(word);
  }
  throw Error(ErrorKind::config, "weights of an unknown type");
}

tensor::Form FormNamed(const std::string& name) {
  return Choose<tensor::Form>("sparse", name, tensor::kForms);
}

ops::KvType KvTypeNamed(const std::string& name) {
  using ops::KvType;
  static constexpr std::pair<std::string_view, KvType> kChoices[] = {
      {"f32", KvType::f32}, {"bf16", KvType::bf16}, {"int8", KvType::int8}};
  return Choose<KvType>("kv", name, kChoices);
}

model::LogitsRows LogitsRowsNamed(const std::string& name) {
  using model::LogitsRows;
  static constexpr std::pair<std::string_view, LogitsRows> kChoices[] = {
      {"last", LogitsRows::last}, {"all", LogitsRows::all}, {"none", LogitsRows::none}};
  return Choose<LogitsRows>("logits", name, kChoices);
}

const kernels::KernelTable& KernelsNamed(const std::optional<std::string>& tier) {
  if (!tier) return kernels::SelectKernels();
  std::vector<std::pair<std::string_view, kernels::Tier>> choices;
  for (const kernels::Tier available : kernels::AvailableTiers()) {
    choices.emplace_back(kernels::TierName(available), available);
  }
  return kernels::TableFor(Choose<kernels::Tier>("tier", *tier, choices));
}

tensor::SourceType SourceTypeOf(const py::array& values, const std::string& tensor_name) {
  const py::dtype dtype = values.dtype();
  if (dtype.equal(py::dtype::of<float>())) return tensor::SourceType::f32;
  if (dtype.equal(py::dtype::of<std::uint16_t>())) return tensor::SourceType::bf16;
  if (dtype.equal(py::dtype("float16"))) return tensor::SourceType::f16;
  throw Error(ErrorKind::format,
              "tensor " + tensor_name +
                  ": expected float32, float16 or uint16 (bfloat16 bits), found " +
                  py::str(dtype).cast<std::string>());
}

}  // namespace slimformer::bindings
