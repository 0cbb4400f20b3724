#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu_features.h"
#include "base/env.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "bindings/names.h"
#include "kernels/registry.h"
#include "ops/roofline.h"
#include "tensor/dtype.h"
#include "tensor/layout.h"
#include "tensor/packed_matrix.h"

namespace slimformer::bindings {
namespace {

namespace py = pybind11;

constexpr double kMostProbeSeconds = 60;

std::string Compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

py::dict BuildInfo() {
  std::vector<std::string> tiers;
  for (const kernels::Tier tier : kernels::AvailableTiers()) {
    tiers.emplace_back(kernels::TierName(tier));
  }
  py::dict info;
  info["version"] = SLIMFORMER_VERSION;
  info["compiler"] = Compiler();
  info["tier"] = std::string(kernels::TierName(kernels::SelectKernels().tier));
  info["tiers"] = tiers;
  info["cpu_features"] = CpuFeatureNames(DetectCpuFeatures());
  info["isa_override"] = Env("SLIMFORMER_ISA");
  std::vector<std::string> weight_types;
  for (const auto& [name, type] : tensor::kWeightTypes) weight_types.emplace_back(name);
  info["weight_types"] = weight_types;
  info["cores"] = AvailableCores();
  return info;
}

py::dict MeasureRoofline(int threads, double seconds) {
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > kMostProbeSeconds) {
    throw Error(ErrorKind::config, "seconds: expected above 0 and at most 60");
  }
  ops::Roofline roofline{};
  {
    const py::gil_scoped_release release;
    const std::shared_ptr<ThreadPool> pool = ThreadPool::Shared(threads);
    roofline = ops::MeasureRoofline(*pool, kernels::SelectKernels(), seconds);
  }
  py::dict result;
  result["gflops"] = roofline.gflops;
  result["gbytes_per_s"] = roofline.gbytes_per_s;
  return result;
}

// By type and form, how the kernels of a tier keep weights.
std::map<std::pair<std::string, bool>, std::uint64_t> Layouts(
    const std::optional<std::string>& tier) {
  const kernels::KernelTable& kernels = KernelsNamed(tier);
  std::map<std::pair<std::string, bool>, std::uint64_t> layouts;
  for (const auto& [name, type] : tensor::kWeightTypes) {
    for (const bool sparse : {false, true}) {
      if (sparse && tensor::SparseFor(kernels, type) == nullptr) continue;
      layouts[{std::string(name), sparse}] = tensor::LayoutOf(kernels, type, sparse);
    }
  }
  return layouts;
}

}  // namespace

void BindInfo(py::module_& module) {
  module.def("build_info", &BuildInfo);
  module.def("layouts", &Layouts, py::arg("tier") = py::none());
  module.def("measure_roofline", &MeasureRoofline, py::kw_only(), py::arg("threads"),
             py::arg("seconds") = 1.0);
}

}  // namespace slimformer::bindings
