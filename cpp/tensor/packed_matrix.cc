#include "tensor/packed_matrix.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <string>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/f16.h"
#include "tensor/weight_memory.h"

namespace slimformer::tensor {
namespace {

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

PackedMatrix::PackedMatrix(const kernels::KernelTable& kernels, WeightType type, std::size_t rows,
                           std::size_t cols)
    : kernel_(&GemmFor(kernels, type)), type_(type), rows_(rows), cols_(cols) {
  if (rows == 0 || cols == 0) {
    throw Error(ErrorKind::config, "a weight matrix of " + std::to_string(rows) + " x " +
                                       std::to_string(cols) + " values is empty");
  }
  panels_ = (rows - 1) / kernel_->panel_width + 1;
  panel_bytes_ = kernel_->panel_bytes(cols);
  if (panels_ > std::numeric_limits<std::size_t>::max() / panel_bytes_) throw std::bad_alloc();
  data_ = AllocateWeights(panels_ * panel_bytes_);
}

PackedMatrix PackedMatrix::Pack(const kernels::KernelTable& kernels, WeightType type,
                                const MatrixSource& w, std::size_t rows, std::size_t cols,
                                ThreadPool& pool) {
  PackedMatrix matrix(kernels, type, rows, cols);
  const kernels::GemmKernel& kernel = *matrix.kernel_;
  const std::size_t width = kernel.panel_width;
  const bool widen = w.type != SourceType::f32;
  // One panel a thread: [size, panel_width, cols].
  AlignedBuffer<float> widened(widen ? static_cast<std::size_t>(pool.size()) * width * cols
                                     : std::size_t{0});
  pool.ParallelFor(matrix.panels_, [&](std::size_t panel, int worker) {
    const std::size_t first = panel * width;
    const std::size_t outputs = std::min(width, rows - first);
    void* packed = matrix.data_.get() + panel * matrix.panel_bytes_;
    if (widen) {
      float* values = widened.data() + static_cast<std::size_t>(worker) * width * cols;
      Widen(kernels, w, first, outputs, cols, values);
      kernel.pack_panel(values, cols, outputs, cols, packed);
    } else {
      const float* values = static_cast<const float*>(w.data) + first * w.stride;
      kernel.pack_panel(values, w.stride, outputs, cols, packed);
    }
  });
  return matrix;
}

PackedMatrix PackedMatrix::Pack(const kernels::KernelTable& kernels, WeightType type,
                                const float* w, std::size_t rows, std::size_t cols,
                                std::size_t stride, ThreadPool& pool) {
  return Pack(kernels, type, MatrixSource{SourceType::f32, w, stride}, rows, cols, pool);
}

void PackedMatrix::UnpackRow(std::size_t row, float* values) const noexcept {
  const std::size_t width = kernel_->panel_width;
  kernel_->unpack_row(panel(row / width), row % width, cols_, values);
}

}  // namespace slimformer::tensor
