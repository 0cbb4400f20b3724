#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/packed_model.h"

namespace slimformer::bindings {
namespace {

namespace py = pybind11;

using LayerIndices = std::optional<std::map<int, std::vector<int>>>;
using ExpertIndices = std::optional<std::map<int, std::map<int, std::vector<int>>>>;

std::shared_ptr<model::Plan> MakePlan(const PackedModel& model,
                                      const std::vector<int>& skip_attention,
                                      const std::vector<int>& skip_ffn,
                                      const std::optional<int>& exit_after,
                                      const LayerIndices& heads, const LayerIndices& value_dims,
                                      const LayerIndices& neurons, const LayerIndices& experts,
                                      const ExpertIndices& expert_neurons) {
  const std::map<int, std::vector<int>> all;
  const model::Mask mask{
      .skip_attention = skip_attention,
      .skip_ffn = skip_ffn,
      .exit_after = exit_after,
      .heads = heads.value_or(all),
      .value_dims = value_dims.value_or(all),
      .neurons = neurons.value_or(all),
      .experts = experts.value_or(all),
      .expert_neurons = expert_neurons.value_or(std::map<int, std::map<int, std::vector<int>>>{})};
  return std::make_shared<model::Plan>(model.transformer().weights(), mask);
}

std::shared_ptr<model::Session> MakeSession(const PackedModel& model,
                                            const std::shared_ptr<model::Plan>& plan,
                                            const std::string& kv,
                                            const std::optional<int>& capacity,
                                            const std::optional<std::size_t>& window,
                                            std::size_t sinks) {
  const model::Transformer& transformer = model.transformer();
  if (plan != nullptr && &plan->weights() != transformer.weights().get()) {
    throw Error(ErrorKind::data, "the plan belongs to another model");
  }
  const std::shared_ptr<const model::Plan> used = plan == nullptr ? transformer.whole_plan() : plan;
  std::optional<ops::KvWindow> kept;
  if (window) kept = ops::KvWindow{*window, sinks};
  return std::make_shared<model::Session>(used, KvTypeNamed(kv), capacity, kept);
}

}  // namespace

void BindSession(py::module_& module) {
  py::class_<model::Plan, std::shared_ptr<model::Plan>>(module, "Plan")
      .def(py::init(&MakePlan), py::arg("model"), py::kw_only(),
           py::arg("skip_attention") = py::tuple(), py::arg("skip_ffn") = py::tuple(),
           py::arg("exit_after") = py::none(), py::arg("heads") = py::none(),
           py::arg("value_dims") = py::none(), py::arg("neurons") = py::none(),
           py::arg("experts") = py::none(), py::arg("expert_neurons") = py::none())
      .def_property_readonly("steps", &model::Plan::StepNames);

  py::class_<model::Session, std::shared_ptr<model::Session>>(module, "Session")
      .def(py::init(&MakeSession), py::arg("model"), py::kw_only(), py::arg("plan") = py::none(),
           py::arg("kv") = "f32", py::arg("capacity") = py::none(), py::arg("window") = py::none(),
           py::arg("sinks") = 0)
      .def_property_readonly("position", &model::Session::position)
      .def_property_readonly("capacity", &model::Session::capacity)
      .def_property_readonly("kv_bytes", &model::Session::KvBytes)
      .def("fork",
           [](model::Session& session) { return std::shared_ptr<model::Session>(session.Fork()); })
      .def("rewind", &model::Session::Rewind, py::arg("position"));
}

}  // namespace slimformer::bindings
