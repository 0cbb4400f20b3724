// A weight matrix in the layout that one tier's matrix product reads.
#pragma once

#include <cstddef>
#include <memory>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "tensor/dtype.h"

namespace slimformer::tensor {

// A row-major matrix in somebody else's memory.
struct MatrixSource {
  SourceType type;
  const void* data;    // [rows, cols]
  std::size_t stride;  // values from one row to the next
};

// The matrix product of a tier for one type of weights.
const kernels::GemmKernel& GemmFor(const kernels::KernelTable& kernels, WeightType type) noexcept;

class PackedMatrix {
 public:
  PackedMatrix(PackedMatrix&&) noexcept = default;
  PackedMatrix& operator=(PackedMatrix&&) noexcept = default;
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  // Packs w [rows, cols] (a linear layer's weight: `rows` outputs, `cols` inputs). Only one panel
  // a thread is ever converted at a time, so nothing but the result takes memory. `kernels` must
  // outlive the matrix. Error(config) where a dimension is 0.
  static PackedMatrix Pack(const kernels::KernelTable& kernels, WeightType type,
                           const MatrixSource& w, std::size_t rows, std::size_t cols,
                           ThreadPool& pool);
  static PackedMatrix Pack(const kernels::KernelTable& kernels, WeightType type, const float* w,
                           std::size_t rows, std::size_t cols, std::size_t stride,
                           ThreadPool& pool);

  std::size_t rows() const noexcept { return rows_; }
  std::size_t cols() const noexcept { return cols_; }
  std::size_t bytes() const noexcept { return panels_ * panel_bytes_; }
  WeightType type() const noexcept { return type_; }

  // Writes one row, widened to float32, to values [cols].
  void UnpackRow(std::size_t row, float* values) const noexcept;

  // Panel i holds rows [i * panel_width, (i + 1) * panel_width), the last one padded with zeros.
  std::size_t panels() const noexcept { return panels_; }
  const std::byte* panel(std::size_t i) const noexcept { return data_.get() + i * panel_bytes_; }
  const kernels::GemmKernel& kernel() const noexcept { return *kernel_; }

 private:
  PackedMatrix(const kernels::KernelTable& kernels, WeightType type, std::size_t rows,
               std::size_t cols);

  const kernels::GemmKernel* kernel_;
  WeightType type_;
  std::size_t rows_;
  std::size_t cols_;
  std::size_t panels_;
  std::size_t panel_bytes_;
  std::shared_ptr<std::byte> data_;  // [panels, panel_bytes]
};

}  // namespace slimformer::tensor
