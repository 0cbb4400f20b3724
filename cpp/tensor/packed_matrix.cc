#include "tensor/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/f16.h"
#include "tensor/weight_memory.h"

namespace slimformer::tensor {
namespace {

// Bytes that the offsets of compressed panels take.
std::size_t OffsetBytes(std::size_t panels) {
  constexpr std::size_t kLine = 64;
  return ((panels + 1) * sizeof(std::uint64_t) + kLine - 1) / kLine * kLine;
}

// Widens `rows` rows of w, from row `first` on, to values [rows, cols].
void Widen(const kernels::KernelTable& kernels, const MatrixSource& w, std::size_t first,
           std::size_t rows, std::size_t cols, float* values) {
  const auto* source = static_cast<const std::uint16_t*>(w.data) + first * w.stride;
  for (std::size_t row = 0; row < rows; ++row) {
    const std::uint16_t* from = source + row * w.stride;
    float* to = values + row * cols;
    if (w.type == SourceType::bf16) {
      kernels.from_bf16(from, cols, to);
    } else {
      for (std::size_t c = 0; c < cols; ++c) to[c] = FloatFromF16(from[c]);
    }
  }
}

// Packs all panels as `kernel` wants them: panel i to place(i, worker), where done(i, packed) may
// then read it.
template <class Place, class Done>
void PackPanels(const kernels::KernelTable& kernels, const kernels::GemmKernel& kernel,
                const MatrixSource& w, std::size_t rows, std::size_t cols, ThreadPool& pool,
                const Place& place, const Done& done) {
  const std::size_t width = kernel.panel_width;
  const bool widen = w.type != SourceType::f32;
  // One panel a thread: [size, panel_width, cols].
  AlignedBuffer<float> widened(widen ? static_cast<std::size_t>(pool.size()) * width * cols
                                     : std::size_t{0});
  pool.ParallelFor((rows - 1) / width + 1, [&](std::size_t panel, int worker) {
    const std::size_t first = panel * width;
    const std::size_t outputs = std::min(width, rows - first);
    std::byte* packed = place(panel, worker);
    if (widen) {
      float* values = widened.data() + static_cast<std::size_t>(worker) * width * cols;
      Widen(kernels, w, first, outputs, cols, values);
      kernel.pack_panel(values, cols, outputs, cols, packed);
    } else {
      const float* values = static_cast<const float*>(w.data) + first * w.stride;
      kernel.pack_panel(values, w.stride, outputs, cols, packed);
    }
    done(panel, packed);
  });
}

template <class Bits>
std::size_t CountZeros(const Bits* values, std::size_t n) {
  constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
  std::size_t zeros = 0;
  for (std::size_t i = 0; i < n; ++i) zeros += (values[i] & kMagnitude) == 0 ? 1 : 0;
  return zeros;
}

// The share of weights that are zero.
double ZeroShare(const MatrixSource& w, std::size_t rows, std::size_t cols, ThreadPool& pool) {
  std::atomic<std::size_t> zeros{0};
  pool.ParallelFor(rows, [&](std::size_t row, int) {
    zeros += w.type == SourceType::f32
                 ? CountZeros(static_cast<const std::uint32_t*>(w.data) + row * w.stride, cols)
                 : CountZeros(static_cast<const std::uint16_t*>(w.data) + row * w.stride, cols);
  });
  return static_cast<double>(zeros.load()) / static_cast<double>(rows * cols);
}

}  // namespace

const kernels::GemmKernel& GemmFor(const kernels::KernelTable& kernels, WeightType type) noexcept {
  switch (type) {
    case WeightType::f32:
      return kernels.gemm_f32;
    case WeightType::bf16:
      return kernels.gemm_bf16;
    case WeightType::int8:
      return kernels.gemm_int8;
    case WeightType::int4:
      break;
  }
  return kernels.gemm_int4;
}

const kernels::SparseKernel* SparseFor(const kernels::KernelTable& kernels,
                                       WeightType type) noexcept {
  switch (type) {
    case WeightType::bf16:
      return &kernels.sparse_bf16;
    case WeightType::int8:
      return &kernels.sparse_int8;
    case WeightType::f32:
    case WeightType::int4:
      break;
  }
  return nullptr;
}

PackedMatrix::PackedMatrix(const kernels::GemmKernel& kernel, WeightType type, std::size_t rows,
                           std::size_t cols)
    : kernel_(&kernel), type_(type), rows_(rows), cols_(cols) {
  if (rows == 0 || cols == 0) {
    throw Error(ErrorKind::config, "a weight matrix of " + std::to_string(rows) + " x " +
                                       std::to_string(cols) + " values is empty");
  }
  panels_ = (rows - 1) / kernel_->panel_width + 1;
  panel_bytes_ = kernel_->panel_bytes(cols);
  if (panels_ > std::numeric_limits<std::size_t>::max() / panel_bytes_) throw std::bad_alloc();
}

const std::byte* PackedMatrix::Panel(std::size_t i) const noexcept {
  if (sparse_ == nullptr) return data_.get() + i * panel_bytes_;
  std::uint64_t offset = 0;
  std::memcpy(&offset, data_.get() + i * sizeof(offset), sizeof(offset));
  return data_.get() + OffsetBytes(panels_) + offset;
}

std::size_t PackedMatrix::PanelRows(std::size_t i) const noexcept {
  const std::size_t width = kernel_->panel_width;
  return std::min(width, rows_ - i * width);
}

// The panel, and as many bytes again that nobody touches: products fetch what lies behind theirs,
// which must not be what another thread writes to.
std::size_t PackedMatrix::scratch_bytes() const noexcept {
  return is_sparse() ? 2 * panel_bytes_ : 0;
}

void PackedMatrix::MultiplyPanel(std::size_t i, const void* x, std::size_t x_stride,
                                 std::size_t rows, float* y, std::size_t y_stride, bool accumulate,
                                 std::byte* scratch) const noexcept {
  const void* panel = Panel(i);
  auto* multiply = kernel_->multiply;
  if (is_sparse() && rows <= sparse_->most_rows) {
    multiply = sparse_->multiply;
  } else if (is_sparse()) {
    sparse_->expand(panel, cols_, scratch);
    panel = scratch;
  }
  multiply(x, x_stride, rows, panel, cols_, y, y_stride, PanelRows(i), accumulate);
}

PackedMatrix PackedMatrix::Pack(const kernels::KernelTable& kernels, WeightType type,
                                const MatrixSource& w, std::size_t rows, std::size_t cols,
                                ThreadPool& pool, Form form) {
  PackedMatrix matrix(GemmFor(kernels, type), type, rows, cols);
  const kernels::SparseKernel* sparse = SparseFor(kernels, type);
  if (sparse == nullptr) {
    if (form == Form::sparse || form == Form::expanded) {
      throw Error(ErrorKind::config, "weights of this type have no sparse form");
    }
    form = Form::dense;
  }
  if (form == Form::chosen && ZeroShare(w, rows, cols, pool) < sparse->least_zeros) {
    form = Form::dense;
  }
  if (form != Form::dense) {
    PackedMatrix other(sparse->dense, type, rows, cols);
    if (form == Form::expanded) {
      other.PackDense(kernels, w, pool);
      return other;
    }
    if (other.PackSparse(kernels, w, pool, *sparse,
                         form == Form::sparse ? std::numeric_limits<std::size_t>::max()
                                              : matrix.panels_ * matrix.panel_bytes_)) {
      return other;
    }
  }
  matrix.PackDense(kernels, w, pool);
  return matrix;
}

void PackedMatrix::PackDense(const kernels::KernelTable& kernels, const MatrixSource& w,
                             ThreadPool& pool) {
  bytes_ = panels_ * panel_bytes_;
  const std::shared_ptr<std::byte> data = AllocateWeights(bytes_);
  data_ = data;
  const auto place = [&](std::size_t panel, int) { return data.get() + panel * panel_bytes_; };
  PackPanels(kernels, *kernel_, w, rows_, cols_, pool, place, [](std::size_t, std::byte*) {});
}

// Panels are packed twice, first to know how long they get: nothing else takes memory.
bool PackedMatrix::PackSparse(const kernels::KernelTable& kernels, const MatrixSource& w,
                              ThreadPool& pool, const kernels::SparseKernel& sparse,
                              std::size_t limit) {
  AlignedBuffer<std::byte> dense(static_cast<std::size_t>(pool.size()) * panel_bytes_);
  const auto place = [&](std::size_t, int worker) {
    return dense.data() + static_cast<std::size_t>(worker) * panel_bytes_;
  };
  std::vector<std::uint64_t> offsets(panels_ + 1);
  PackPanels(kernels, *kernel_, w, rows_, cols_, pool, place,
             [&](std::size_t panel, const std::byte* packed) {
               offsets[panel + 1] = sparse.compressed_bytes(packed, cols_);
             });
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  const std::size_t table_bytes = OffsetBytes(panels_);
  bytes_ = table_bytes + offsets.back() + kernels::kSparseOverrun;
  if (bytes_ >= limit) return false;
  const std::shared_ptr<std::byte> data = AllocateWeights(bytes_);
  data_ = data;
  std::memcpy(data.get(), offsets.data(), offsets.size() * sizeof(offsets[0]));
  std::byte* panels = data.get() + table_bytes;
  PackPanels(kernels, *kernel_, w, rows_, cols_, pool, place,
             [&](std::size_t panel, const std::byte* packed) {
               sparse.compress(packed, cols_, panels + offsets[panel]);
             });
  sparse_ = &sparse;
  return true;
}

PackedMatrix PackedMatrix::Pack(const kernels::KernelTable& kernels, WeightType type,
                                const float* w, std::size_t rows, std::size_t cols,
                                std::size_t stride, ThreadPool& pool) {
  return Pack(kernels, type, MatrixSource{SourceType::f32, w, stride}, rows, cols, pool);
}

PackedMatrix PackedMatrix::Map(const kernels::KernelTable& kernels, WeightType type, bool sparse,
                               std::size_t rows, std::size_t cols,
                               std::shared_ptr<const std::byte> data, std::size_t bytes) {
  const kernels::SparseKernel* form = SparseFor(kernels, type);
  if (sparse && form == nullptr) {
    throw Error(ErrorKind::config, "weights of this type have no sparse form");
  }
  PackedMatrix matrix(sparse ? form->dense : GemmFor(kernels, type), type, rows, cols);
  constexpr std::uintptr_t kAlignment = 64;
  if (reinterpret_cast<std::uintptr_t>(data.get()) % kAlignment != 0) {
    throw Error(ErrorKind::format, "packed weights must be aligned to 64 bytes");
  }
  matrix.bytes_ = bytes;
  matrix.data_ = std::move(data);
  if (sparse) {
    matrix.sparse_ = form;
    matrix.CheckSparse();
  } else if (bytes != matrix.panels_ * matrix.panel_bytes_) {
    throw Error(ErrorKind::format, "expected " +
                                       std::to_string(matrix.panels_ * matrix.panel_bytes_) +
                                       " bytes of packed weights, found " + std::to_string(bytes));
  }
  return matrix;
}

// That every panel lies within the memory, and what its masks say within the panel.
void PackedMatrix::CheckSparse() const {
  const std::size_t table_bytes = OffsetBytes(panels_);
  if (bytes_ < table_bytes + kernels::kSparseOverrun) {
    throw Error(ErrorKind::format, "packed weights: expected the offsets of " +
                                       std::to_string(panels_) + " panels, found " +
                                       std::to_string(bytes_) + " bytes");
  }
  const std::size_t room = bytes_ - table_bytes - kernels::kSparseOverrun;
  std::vector<std::uint64_t> offsets(panels_ + 1);
  std::memcpy(offsets.data(), data_.get(), offsets.size() * sizeof(offsets[0]));
  bool fits = offsets.front() == 0 && offsets.back() == room;
  for (std::size_t i = 0; fits && i < panels_; ++i) {
    const std::uint64_t begin = offsets[i];
    const std::uint64_t end = offsets[i + 1];
    fits = begin <= end && end <= room &&
           sparse_->stored_bytes(Panel(i), cols_, end - begin) == end - begin;
    if (!fits) {
      throw Error(ErrorKind::format, "packed weights: panel " + std::to_string(i) +
                                         " is not as long as its masks say");
    }
  }
  if (!fits) throw Error(ErrorKind::format, "packed weights: the offsets do not fill the memory");
}

void PackedMatrix::UnpackRow(std::size_t row, float* values) const {
  const std::size_t width = kernel_->panel_width;
  const std::byte* packed = Panel(row / width);
  AlignedBuffer<std::byte> expanded;
  if (is_sparse()) {
    expanded = AlignedBuffer<std::byte>(panel_bytes_);
    sparse_->expand(packed, cols_, expanded.data());
    packed = expanded.data();
  }
  kernel_->unpack_row(packed, row % width, cols_, values);
}

}  // namespace slimformer::tensor
