#include "ops/linear_input.h"

#include <algorithm>

#include "ops/rows.h"

namespace slimformer::ops {

std::size_t InputRowBytes(const kernels::GemmKernel& kernel, std::size_t cols) {
  return kernel.prepare_input == nullptr ? cols * sizeof(float) : kernel.input_row_bytes(cols);
}

LinearInput PrepareInput(ThreadPool& pool, tensor::Workspace& workspace,
                         const kernels::GemmKernel& kernel, const float* x, std::size_t x_stride,
                         std::size_t rows, std::size_t cols) {
  if (kernel.prepare_input == nullptr) {
    return {reinterpret_cast<const std::byte*>(x), x_stride, x_stride * sizeof(float), rows, cols};
  }
  const std::size_t row_bytes = kernel.input_row_bytes(cols);
  auto* prepared = workspace.Take<std::byte>(rows * row_bytes);
  ForRows(pool, rows, cols, [&](std::size_t begin, std::size_t end) {
    kernel.prepare_input(x + begin * x_stride, x_stride, end - begin, cols,
                         prepared + begin * row_bytes, row_bytes);
  });
  return {prepared, x_stride, row_bytes, rows, cols};
}

void PrepareInputs(ThreadPool& pool, tensor::Workspace& workspace,
                   std::span<const kernels::GemmKernel* const> kernels, const float* x,
                   std::size_t x_stride, std::size_t rows, std::size_t cols, LinearInput* inputs) {
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    const auto same = std::ranges::find(kernels.first(i), kernels[i]->prepare_input,
                                        &kernels::GemmKernel::prepare_input);
    const auto before = static_cast<std::size_t>(same - kernels.begin());
    inputs[i] = before < i ? inputs[before]
                           : PrepareInput(pool, workspace, *kernels[i], x, x_stride, rows, cols);
  }
}

}  // namespace slimformer::ops
