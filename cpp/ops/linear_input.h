// The rows that matrix products read, in the form in which their kernel reads them.
#pragma once

#include <cstddef>
#include <span>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "ops/norm.h"
#include "tensor/workspace.h"

namespace slimformer::ops {

// x [rows, cols]. Kernels whose `prepare_input` is the same read the same form.
struct LinearInput {
  const std::byte* data;
  std::size_t stride;     // floats from row to row; of no meaning where x was prepared
  std::size_t row_bytes;  // from row to row
  std::size_t rows;
  std::size_t cols;

  const void* Row(std::size_t row) const { return data + row * row_bytes; }
};

// Bytes of a row as the kernel reads it.
std::size_t InputRowBytes(const kernels::GemmKernel& kernel, std::size_t cols);

// x itself (rows `x_stride` floats apart), or a copy in memory of the workspace.
LinearInput PrepareInput(ThreadPool& pool, tensor::Workspace& workspace,
                         const kernels::GemmKernel& kernel, const float* x, std::size_t x_stride,
                         std::size_t rows, std::size_t cols);

// The same for several kernels, into inputs [kernels]: each form is made once.
void PrepareInputs(ThreadPool& pool, tensor::Workspace& workspace,
                   std::span<const kernels::GemmKernel* const> kernels, const float* x,
                   std::size_t x_stride, std::size_t rows, std::size_t cols, LinearInput* inputs);

// norm(x) of x [rows, cols] as each of the kernels reads it. A row passes from the norm to these
// forms while it is in the first-level cache; float32 rows are written to memory only for kernels
// that read them.
void NormaliseInputs(const Context& context, std::span<const kernels::GemmKernel* const> kernels,
                     const Norm& norm, const float* x, std::size_t rows, std::size_t cols,
                     LinearInput* inputs);

}  // namespace slimformer::ops
