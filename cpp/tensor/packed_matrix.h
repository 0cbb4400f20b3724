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

// Its sparse form; null where the type has none.
const kernels::SparseKernel* SparseFor(const kernels::KernelTable& kernels,
                                       WeightType type) noexcept;

// bytes: [panels, panel_bytes], or sparse: offsets [panels + 1] of compressed panels, from the
// first on, in 64 bits each and padded to 64 bytes; the panels; kernels::kSparseOverrun bytes.
class PackedMatrix {
 public:
  PackedMatrix(PackedMatrix&&) noexcept = default;
  PackedMatrix& operator=(PackedMatrix&&) noexcept = default;
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  // Packs w [rows, cols] (a linear layer's weight: `rows` outputs, `cols` inputs). Only one panel
  // a thread is ever converted at a time, so nothing but the result takes memory. `kernels` must
  // outlive the matrix. A type without a sparse form is dense where the form leaves a choice.
  // Error(config) where it does not, or where a dimension is 0.
  static PackedMatrix Pack(const kernels::KernelTable& kernels, WeightType type,
                           const MatrixSource& w, std::size_t rows, std::size_t cols,
                           ThreadPool& pool, Form form = Form::chosen);
  static PackedMatrix Pack(const kernels::KernelTable& kernels, WeightType type, const float* w,
                           std::size_t rows, std::size_t cols, std::size_t stride,
                           ThreadPool& pool);

  // A matrix as it was packed before: `bytes` of memory, aligned to 64, that data() was. Nothing is
  // copied. Whatever the memory holds, the matrix can be used; but if it is sparse, no byte of it
  // may change meanwhile. Error(format) where the sizes do not fit, Error(config) as above.
  static PackedMatrix Map(const kernels::KernelTable& kernels, WeightType type, bool sparse,
                          std::size_t rows, std::size_t cols, std::shared_ptr<const std::byte> data,
                          std::size_t bytes);

  const std::byte* data() const noexcept { return data_.get(); }

  std::size_t rows() const noexcept { return rows_; }
  std::size_t cols() const noexcept { return cols_; }
  std::size_t bytes() const noexcept { return bytes_; }
  WeightType type() const noexcept { return type_; }

  // Writes one row, widened to float32, to values [cols]. Throws std::bad_alloc.
  void UnpackRow(std::size_t row, float* values) const;

  // Panel i holds rows [i * panel_width, (i + 1) * panel_width), the last one padded with zeros.
  std::size_t panels() const noexcept { return panels_; }
  std::size_t PanelRows(std::size_t i) const noexcept;

  // kernel().multiply of x, as that wants it, with panel i: y [rows, PanelRows(i)] (+)= x W'.
  // `scratch` is scratch_bytes() of the caller's own, aligned to 64.
  void MultiplyPanel(std::size_t i, const void* x, std::size_t x_stride, std::size_t rows, float* y,
                     std::size_t y_stride, bool accumulate, std::byte* scratch) const noexcept;
  std::size_t scratch_bytes() const noexcept;

  const kernels::GemmKernel& kernel() const noexcept { return *kernel_; }
  bool is_sparse() const noexcept { return sparse_ != nullptr; }

 private:
  PackedMatrix(const kernels::GemmKernel& kernel, WeightType type, std::size_t rows,
               std::size_t cols);

  void PackDense(const kernels::KernelTable& kernels, const MatrixSource& w, ThreadPool& pool);
  // False, and nothing packed, where it would take `limit` bytes or more.
  bool PackSparse(const kernels::KernelTable& kernels, const MatrixSource& w, ThreadPool& pool,
                  const kernels::SparseKernel& sparse, std::size_t limit);
  const std::byte* Panel(std::size_t i) const noexcept;
  void CheckSparse() const;

  const kernels::GemmKernel* kernel_;              // of dense panels, or of expanded ones
  const kernels::SparseKernel* sparse_ = nullptr;  // of compressed panels
  WeightType type_;
  std::size_t rows_;
  std::size_t cols_;
  std::size_t panels_;
  std::size_t panel_bytes_;  // of a dense panel
  std::size_t bytes_ = 0;
  std::shared_ptr<const std::byte> data_;  // [bytes]
};

}  // namespace slimformer::tensor
