#include <cstdint>
#include <memory>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "ops/sampling.h"

namespace slimformer::bindings {

void BindSampler(py::module_& module) {
  py::class_<ops::Sampler>(module, "Sampler")
      .def(py::init([](double temperature, int top_k, double top_p, double min_p,
                       double repetition_penalty, std::uint64_t seed) {
             return std::make_unique<ops::Sampler>(
                 ops::SamplingOptions{temperature, top_k, top_p, min_p, repetition_penalty, seed});
           }),
           py::kw_only(), py::arg("temperature") = 0.0, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0, py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0,
           py::arg("seed") = 0)
      // Keeps the interpreter: it takes less time than letting go, and a sampler has one state.
      .def(
          "sample",
          [](ops::Sampler& sampler, const py::array& logits, const py::array& history) {
            const Array<float> values = Checked<float>(logits, 1, "logits");
            const std::vector<std::int32_t> tokens = CopyTokens(history, "history");
            return sampler.Sample({values.data(), static_cast<std::size_t>(values.size())}, tokens);
          },
          py::arg("logits"), py::arg("history"));
}

}  // namespace slimformer::bindings
