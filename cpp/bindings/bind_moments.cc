#include <pybind11/stl.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kernels/registry.h"
#include "ops/moments.h"

namespace slimformer::bindings {
namespace {

using ops::Moments;

constexpr std::ptrdiff_t kMostColumns = std::ptrdiff_t{1} << 24;

const kernels::GemmKernel& GemmNamed(const std::string& products) {
  const kernels::KernelTable& kernels = kernels::SelectKernels();
  if (products == "f32") return kernels.gemm_f32;
  if (products == "bf16") return kernels.gemm_bf16;
  throw Error(ErrorKind::config, "products: expected one of f32, bf16, found '" + products + "'");
}

std::shared_ptr<Moments> MakeMoments(std::ptrdiff_t width, bool gram, std::ptrdiff_t target_width,
                                     const std::string& products, int threads) {
  if (width < 1 || width > kMostColumns || target_width < 0 || target_width > kMostColumns) {
    throw Error(ErrorKind::config, "moments: cannot have width " + std::to_string(width) +
                                       " and target width " + std::to_string(target_width));
  }
  return std::make_shared<Moments>(static_cast<std::size_t>(width), gram,
                                   static_cast<std::size_t>(target_width), GemmNamed(products),
                                   ThreadPool::Shared(threads));
}

void Update(Moments& moments, const py::array& x, const std::optional<py::array>& target) {
  const Array<float> rows = CheckedRows<float>(x, moments.width(), "x");
  if (target.has_value() != (moments.target_width() > 0)) {
    throw Error(ErrorKind::data, target ? "moments: made without targets"
                                        : "moments: made with targets, but got none");
  }
  const float* target_data = nullptr;
  if (target) {
    const Array<float> targets = CheckedRows<float>(*target, moments.target_width(), "target");
    if (targets.shape(0) != rows.shape(0)) {
      throw Error(ErrorKind::data, "target: expected " + std::to_string(rows.shape(0)) +
                                       " rows, as x has, found " +
                                       std::to_string(targets.shape(0)));
    }
    target_data = targets.data();
  }
  const float* data = rows.data();
  const auto n = static_cast<std::size_t>(rows.shape(0));
  const py::gil_scoped_release release;
  moments.Update(data, target_data, n);
}

template <auto Copy>
Array<double> CopyVector(const Moments& moments) {
  Array<double> values = Empty<double>(moments.width());
  (moments.*Copy)(values.mutable_data());
  return values;
}

Array<double> Gram(const Moments& moments) {
  if (!moments.has_gram()) throw Error(ErrorKind::data, "moments: made without gram");
  Array<double> values = Empty<double>(moments.width(), moments.width());
  moments.CopyGram(values.mutable_data());
  return values;
}

Array<double> Cross(const Moments& moments) {
  if (moments.target_width() == 0) throw Error(ErrorKind::data, "moments: made without targets");
  Array<double> values = Empty<double>(moments.width(), moments.target_width());
  moments.CopyCross(values.mutable_data());
  return values;
}

}  // namespace

void BindMoments(py::module_& module) {
  py::class_<Moments, std::shared_ptr<Moments>>(module, "Moments")
      .def(py::init(&MakeMoments), py::arg("width"), py::kw_only(), py::arg("gram") = true,
           py::arg("target_width") = 0, py::arg("products") = "f32", py::arg("threads") = 0)
      .def("update", &Update, py::arg("x"), py::arg("target") = py::none())
      .def_property_readonly("count", &Moments::count)
      .def_property_readonly("sum", &CopyVector<&Moments::CopySum>)
      .def_property_readonly("sum_squares", &CopyVector<&Moments::CopySumSquares>)
      .def_property_readonly("gram", &Gram)
      .def_property_readonly("cross", &Cross);
}

}  // namespace slimformer::bindings
