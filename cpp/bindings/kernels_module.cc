// slimformer._kernels: every kernel of every tier, for the tests and benchmarks in tests/kernels
// and bench/kernels. The package does not use it.
//
// Arrays are taken as they are, never converted or copied, so that a test decides where memory
// begins and ends; outputs are written in place.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu_features.h"
#include "base/error.h"
#include "bindings/names.h"
#include "bindings/time_attention.h"
#include "kernels/registry.h"
#include "ops/linear.h"
#include "ops/roofline.h"
#include "tensor/packed_matrix.h"

namespace py = pybind11;

namespace slimformer {
namespace {

using F32Array = py::array_t<float, py::array::c_style>;
using U16Array = py::array_t<std::uint16_t, py::array::c_style>;
using I8Array = py::array_t<std::int8_t, py::array::c_style>;
using I32Array = py::array_t<std::int32_t, py::array::c_style>;

const kernels::KernelTable& Table(const std::string& tier) {
  for (const kernels::Tier available : kernels::AvailableTiers()) {
    if (kernels::TierName(available) == tier) return kernels::TableFor(available);
  }
  throw Error(ErrorKind::config, "no tier '" + tier + "' here");
}

std::size_t Size(const py::array& array) { return static_cast<std::size_t>(array.size()); }

std::size_t Dim(const py::array& array, int axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

void Require(bool holds, const char* what) {
  if (!holds) throw Error(ErrorKind::data, what);
}

tensor::WeightType WeightTypeNamed(const std::string& name) {
  for (const auto& [word, type] : tensor::kWeightTypes) {
    if (word == name) return type;
  }
  throw Error(ErrorKind::config, "no weights '" + name + "'");
}

tensor::Form FormNamed(const std::string& name) {
  if (name == "chosen") return tensor::Form::chosen;
  if (name == "smaller") return tensor::Form::smaller;
  if (name == "sparse") return tensor::Form::sparse;
  if (name == "expanded") return tensor::Form::expanded;
  Require(name == "dense", "form must be 'chosen', 'dense', 'smaller', 'sparse' or 'expanded'");
  return tensor::Form::dense;
}

tensor::MatrixSource Source(const py::array& w, const std::string& type) {
  Require(w.ndim() == 2 && (w.flags() & py::array::c_style) != 0, "w must be a C-ordered matrix");
  const bool wide = type == "f32";
  Require(wide || type == "bf16" || type == "f16", "source must be 'f32', 'bf16' or 'f16'");
  Require(w.itemsize() == (wide ? 4 : 2), "w's items do not have the size of their type");
  const auto source = wide             ? tensor::SourceType::f32
                      : type == "bf16" ? tensor::SourceType::bf16
                                       : tensor::SourceType::f16;
  return {source, w.data(), Dim(w, 1)};
}

// A packed matrix with the threads to run it.
class Matrix {
 public:
  Matrix(const std::string& tier, const std::string& weights, const py::array& w,
         const std::string& source, const std::string& form, int threads)
      : pool_(ThreadPool::Shared(threads)),
        matrix_(tensor::PackedMatrix::Pack(Table(tier), WeightTypeNamed(weights), Source(w, source),
                                           Dim(w, 0), Dim(w, 1), *pool_, FormNamed(form))) {}

  std::size_t bytes() const { return matrix_.bytes(); }
  bool sparse() const { return matrix_.is_sparse(); }

  void UnpackRow(std::size_t row, F32Array values) const {
    Require(row < matrix_.rows() && Size(values) == matrix_.cols(), "no such row, or wrong length");
    matrix_.UnpackRow(row, values.mutable_data());
  }

  // One call a panel: x [rows, cols], y [rows, outputs].
  void Multiply(const F32Array& x, F32Array y, bool accumulate) const {
    CheckShapes(x, y);
    const kernels::GemmKernel& kernel = matrix_.kernel();
    const std::size_t rows = Dim(x, 0);
    AlignedBuffer<std::byte> prepared(rows * kernel.input_row_bytes(matrix_.cols()));
    const void* input = x.data();
    if (kernel.prepare_input != nullptr) {
      kernel.prepare_input(x.data(), matrix_.cols(), rows, {0, matrix_.cols(), matrix_.cols()},
                           prepared.data());
      input = prepared.data();
    }
    AlignedBuffer<std::byte> scratch(matrix_.scratch_bytes());
    for (std::size_t panel = 0; panel < matrix_.panels(); ++panel) {
      matrix_.MultiplyPanel(panel, input, matrix_.cols(), rows,
                            y.mutable_data() + panel * kernel.panel_width, matrix_.rows(),
                            accumulate, scratch.data());
    }
  }

  void Linear(const F32Array& x, F32Array y, const std::optional<F32Array>& bias, bool accumulate) {
    CheckShapes(x, y);
    Require(!bias || Size(*bias) == matrix_.rows(), "bias must have one value an output");
    const float* added = bias ? bias->data() : nullptr;
    const float* from = x.data();
    float* to = y.mutable_data();
    const std::size_t rows = Dim(x, 0);
    const py::gil_scoped_release release;
    ops::Linear(*pool_, workspace_, matrix_, from, matrix_.cols(), rows, to, matrix_.rows(), added,
                accumulate);
  }

  // Seconds that one product with every matrix takes, the best of `repeats` rounds. Going round
  // over many matrices keeps the weights out of the caches, as a model does.
  static double Time(const std::vector<Matrix*>& matrices, const F32Array& x, F32Array y,
                     int repeats) {
    for (const Matrix* matrix : matrices) matrix->CheckShapes(x, y);
    const float* from = x.data();
    float* to = y.mutable_data();
    const std::size_t rows = Dim(x, 0);
    const py::gil_scoped_release release;
    double best = 1e30;
    for (int i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      for (Matrix* matrix : matrices) {
        ops::Linear(*matrix->pool_, matrix->workspace_, matrix->matrix_, from,
                    matrix->matrix_.cols(), rows, to, matrix->matrix_.rows());
      }
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      best = std::min(best, taken.count());
    }
    return best;
  }

 private:
  void CheckShapes(const F32Array& x, const F32Array& y) const {
    Require(x.ndim() == 2 && Dim(x, 1) == matrix_.cols(), "x must be [rows, inputs]");
    Require(y.ndim() == 2 && Dim(y, 0) == Dim(x, 0) && Dim(y, 1) == matrix_.rows(),
            "y must be [rows, outputs]");
  }

  std::shared_ptr<ThreadPool> pool_;
  tensor::PackedMatrix matrix_;
  tensor::Workspace workspace_;
};

// `bytes` bytes that touch a page nobody may read or write: after their end, or before their
// beginning.
py::array_t<std::uint8_t> Guarded(std::size_t bytes, bool before) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t inner = (bytes + page - 1) / page * page;
  const std::size_t total = inner + 2 * page;
  void* mapped = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* usable = static_cast<std::uint8_t*>(mapped) + page;
  if (inner > 0 && mprotect(usable, inner, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapped, total);
    throw std::bad_alloc();
  }
  struct Mapping {
    void* memory;
    std::size_t bytes;
  };
  const py::capsule owner(new Mapping{mapped, total}, [](void* pointer) {
    const std::unique_ptr<Mapping> mapping(static_cast<Mapping*>(pointer));
    munmap(mapping->memory, mapping->bytes);
  });
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes),
                                   before ? usable : usable + (inner - bytes), owner);
}

void Attend(const std::string& tier, const F32Array& q, const py::array& keys,
            const py::array& values, const I32Array& begin, const I32Array& end, F32Array max,
            F32Array sum, F32Array out, F32Array scratch, float soft_cap,
            const std::optional<F32Array>& key_scales,
            const std::optional<F32Array>& value_scales) {
  const std::size_t rows = Dim(q, 0);
  const std::size_t head_dim = Dim(q, 1);
  const std::size_t value_dim = Dim(out, 1);
  Require(keys.itemsize() == values.itemsize(), "keys and values must have one type");
  const std::size_t padded_dim = keys.itemsize() == 4 ? head_dim : (head_dim + 1) / 2 * 2;
  Require(Size(keys) == kernels::kPagePositions * padded_dim &&
              Size(values) == kernels::kPagePositions * value_dim,
          "keys and values must fill one page");
  Require(Dim(out, 0) == rows && Size(begin) == rows && Size(end) == rows && Size(max) == rows &&
              Size(sum) == rows,
          "every per-row array must have one entry a query");
  Require(Size(scratch) == kernels::AttendScratch(head_dim, value_dim),
          "scratch must be as large as asked");
  const bool scaled = keys.itemsize() == 1;
  Require(!scaled || (key_scales && value_scales && Size(*key_scales) == kernels::kPagePositions &&
                      Size(*value_scales) == kernels::kPagePositions),
          "int8 keys and values need a scale each position");
  const kernels::KernelTable& table = Table(tier);
  const kernels::AttendPage attend = scaled                 ? table.attend_int8
                                     : keys.itemsize() == 4 ? table.attend_f32
                                                            : table.attend_bf16;
  const kernels::KvPart page{keys.data(), values.data(), scaled ? key_scales->data() : nullptr,
                             scaled ? value_scales->data() : nullptr, keys.data()};
  attend(q.data(), head_dim, rows, page, head_dim, value_dim, begin.data(), end.data(), soft_cap,
         max.mutable_data(), sum.mutable_data(), out.mutable_data(), value_dim,
         scratch.mutable_data());
}

kernels::ActivationKernel ActivationNamed(const kernels::KernelTable& table,
                                          const std::string& name) {
  if (name == "silu") return table.silu;
  if (name == "gelu_tanh") return table.gelu_tanh;
  if (name == "gelu") return table.gelu;
  Require(name == "relu", "no such activation");
  return table.relu;
}

void BindElementwise(py::module_& m) {
  m.def(
      "rms_norm",
      [](const std::string& tier, const F32Array& x, const F32Array& weight, float eps,
         std::size_t divisor, F32Array y) {
        Require(Size(x) == Size(weight) && Size(x) == Size(y), "lengths differ");
        Table(tier).rms_norm(x.data(), weight.data(), eps, divisor, Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("weight").noconvert(), py::arg("eps"),
      py::arg("divisor"), py::arg("y").noconvert());
  m.def(
      "rope",
      [](const std::string& tier, F32Array x, const F32Array& cosine, const F32Array& sine) {
        Require(Size(x) == 2 * Size(cosine) && Size(sine) == Size(cosine), "lengths differ");
        Table(tier).rope(x.mutable_data(), cosine.data(), sine.data(), Size(cosine));
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("cosine").noconvert(),
      py::arg("sine").noconvert());
  m.def(
      "layer_norm",
      [](const std::string& tier, const F32Array& x, const F32Array& weight, const F32Array& bias,
         float eps, F32Array y) {
        Require(Size(x) == Size(weight) && Size(x) == Size(bias) && Size(x) == Size(y),
                "lengths differ");
        Table(tier).layer_norm(x.data(), weight.data(), bias.data(), eps, Size(x),
                               y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("weight").noconvert(),
      py::arg("bias").noconvert(), py::arg("eps"), py::arg("y").noconvert());
  m.def(
      "activate",
      [](const std::string& tier, const std::string& activation, const F32Array& x,
         const std::optional<F32Array>& factors, F32Array y) {
        Require(Size(x) == Size(y) && (!factors || Size(*factors) == Size(x)), "lengths differ");
        const float* by = factors ? factors->data() : nullptr;
        ActivationNamed(Table(tier), activation)(x.data(), by, Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("activation"), py::arg("x").noconvert(),
      py::arg("factors").noconvert().none(true), py::arg("y").noconvert());
  m.def(
      "soft_cap",
      [](const std::string& tier, float cap, F32Array y) {
        Table(tier).soft_cap(cap, Size(y), y.mutable_data());
      },
      py::arg("tier"), py::arg("cap"), py::arg("y").noconvert());
  m.def(
      "add",
      [](const std::string& tier, const F32Array& x, F32Array y) {
        Require(Size(x) == Size(y), "lengths differ");
        Table(tier).add(x.data(), Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("y").noconvert());
  m.def(
      "multiply",
      [](const std::string& tier, const F32Array& x, F32Array y) {
        Require(Size(x) == Size(y), "lengths differ");
        Table(tier).multiply(x.data(), Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("y").noconvert());
  m.def(
      "scale",
      [](const std::string& tier, float factor, const F32Array& x, F32Array y) {
        Require(Size(x) == Size(y), "lengths differ");
        Table(tier).scale(factor, x.data(), Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("factor"), py::arg("x").noconvert(), py::arg("y").noconvert());
  m.def(
      "log_sum_exp",
      [](const std::string& tier, const F32Array& x) {
        Require(Size(x) > 0, "no values");
        return Table(tier).log_sum_exp(x.data(), Size(x));
      },
      py::arg("tier"), py::arg("x").noconvert());
  m.def(
      "to_bf16",
      [](const std::string& tier, const F32Array& x, U16Array y) {
        Require(Size(x) == Size(y), "lengths differ");
        Table(tier).to_bf16(x.data(), Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("y").noconvert());
  m.def(
      "to_int8",
      [](const std::string& tier, const F32Array& x, I8Array y) {
        Require(Size(x) == Size(y), "lengths differ");
        return Table(tier).to_int8(x.data(), Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("y").noconvert());
  m.def(
      "from_bf16",
      [](const std::string& tier, const U16Array& x, F32Array y) {
        Require(Size(x) == Size(y), "lengths differ");
        Table(tier).from_bf16(x.data(), Size(x), y.mutable_data());
      },
      py::arg("tier"), py::arg("x").noconvert(), py::arg("y").noconvert());
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Every kernel of every tier, for tests and benchmarks.";
  py::register_exception<Error>(m, "KernelError", PyExc_ValueError);
  m.attr("PAGE_POSITIONS") = kernels::kPagePositions;
  m.attr("KEY_LANES") = kernels::kKeyLanes;
  m.def("attend_scratch", &kernels::AttendScratch, py::arg("head_dim"), py::arg("value_dim"));

  m.def("tiers", [] {
    std::vector<std::string> names;
    for (const kernels::Tier tier : kernels::AvailableTiers()) {
      names.emplace_back(kernels::TierName(tier));
    }
    return names;
  });
  m.def("selected_tier",
        [] { return std::string(kernels::TierName(kernels::SelectKernels().tier)); });
  m.def("cpu_features", [] { return CpuFeatureNames(DetectCpuFeatures()); });
  m.def(
      "geometry",
      [](const std::string& tier, const std::string& weights) {
        const kernels::GemmKernel& kernel = tensor::GemmFor(Table(tier), WeightTypeNamed(weights));
        return std::pair(kernel.panel_width, kernel.tile_rows);
      },
      py::arg("tier"), py::arg("weights"));
  m.def(
      "measure_roofline",
      [](const std::string& tier, int threads, double seconds) {
        const kernels::KernelTable& table = Table(tier);
        const py::gil_scoped_release release;
        const ops::Roofline limits =
            ops::MeasureRoofline(*ThreadPool::Shared(threads), table, seconds);
        return std::pair(limits.gflops, limits.gbytes_per_s);
      },
      py::arg("tier"), py::arg("threads"), py::arg("seconds") = 0.5);
  m.def("guarded", &Guarded, py::arg("bytes"), py::arg("before"));
  m.def("attend", &Attend, py::arg("tier"), py::arg("q").noconvert(), py::arg("keys"),
        py::arg("values"), py::arg("begin").noconvert(), py::arg("end").noconvert(),
        py::arg("max").noconvert(), py::arg("sum").noconvert(), py::arg("out").noconvert(),
        py::arg("scratch").noconvert(), py::arg("soft_cap") = 0.0F,
        py::arg("key_scales").noconvert() = py::none(),
        py::arg("value_scales").noconvert() = py::none());
  BindElementwise(m);

  py::class_<Matrix>(m, "Matrix")
      .def(py::init<const std::string&, const std::string&, const py::array&, const std::string&,
                    const std::string&, int>(),
           py::arg("tier"), py::arg("weights"), py::arg("w"), py::kw_only(),
           py::arg("source") = "f32", py::arg("form") = "chosen", py::arg("threads") = 1)
      .def_property_readonly("bytes", &Matrix::bytes)
      .def_property_readonly("sparse", &Matrix::sparse)
      .def("unpack_row", &Matrix::UnpackRow, py::arg("row"), py::arg("values").noconvert())
      .def("multiply", &Matrix::Multiply, py::arg("x").noconvert(), py::arg("y").noconvert(),
           py::kw_only(), py::arg("accumulate") = false)
      .def("linear", &Matrix::Linear, py::arg("x").noconvert(), py::arg("y").noconvert(),
           py::arg("bias") = py::none(), py::kw_only(), py::arg("accumulate") = false);
  m.def(
      "time_attention",
      [](const std::string& tier, const std::string& kv, std::size_t heads, std::size_t kv_heads,
         std::size_t head_dim, std::size_t context, std::size_t rows, std::size_t layers,
         int threads, int repeats) {
        Require(0 < kv_heads && kv_heads <= heads, "expected heads on every KV head");
        Require(0 < rows && rows <= context, "the rows are the last of the context");
        const kernels::KernelTable& table = Table(tier);
        const ops::KvType type = bindings::KvTypeNamed(kv);
        const py::gil_scoped_release release;
        return bindings::TimeAttention(table, *ThreadPool::Shared(threads), type,
                                       {heads, kv_heads, head_dim, context, rows}, layers, repeats);
      },
      py::arg("tier"), py::arg("kv"), py::kw_only(), py::arg("heads"), py::arg("kv_heads"),
      py::arg("head_dim"), py::arg("context"), py::arg("rows"), py::arg("layers"),
      py::arg("threads"), py::arg("repeats"));
  m.def("time_linear", &Matrix::Time, py::arg("matrices"), py::arg("x").noconvert(),
        py::arg("y").noconvert(), py::arg("repeats"));
}

}  // namespace slimformer
