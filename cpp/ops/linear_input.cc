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
    kernel.prepare_input(x + begin * x_stride, x_stride, end - begin, {0, cols, cols},
                         prepared + begin * row_bytes);
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

void NormaliseInputs(const Context& context, std::span<const kernels::GemmKernel* const> kernels,
                     const Norm& norm, const float* x, std::size_t rows, std::size_t cols,
                     LinearInput* inputs) {
  tensor::Workspace& workspace = context.workspace;
  const bool keeps_values =
      std::ranges::any_of(kernels, [](const auto* kernel) { return !kernel->prepare_input; });
  const auto threads = static_cast<std::size_t>(context.pool.size());
  // All rows, or one for each thread.
  auto* values = workspace.Take<float>((keeps_values ? rows : threads) * cols);
  struct Form {
    const kernels::GemmKernel* kernel;
    std::byte* data;
    std::size_t row_bytes;
  };
  auto* forms = workspace.Take<Form>(kernels.size());
  std::size_t n_forms = 0;
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    if (!kernels[i]->prepare_input) {
      inputs[i] = PrepareInput(context.pool, workspace, *kernels[i], values, cols, rows, cols);
      continue;
    }
    const auto* form = std::find_if(forms, forms + n_forms, [&](const Form& known) {
      return known.kernel->prepare_input == kernels[i]->prepare_input;
    });
    if (form == forms + n_forms) {
      const std::size_t row_bytes = kernels[i]->input_row_bytes(cols);
      forms[n_forms++] = {kernels[i], workspace.Take<std::byte>(rows * row_bytes), row_bytes};
    }
    inputs[i] = {form->data, cols, form->row_bytes, rows, cols};
  }
  ForRows(context.pool, rows, cols, [&](std::size_t begin, std::size_t end, int worker) {
    for (std::size_t r = begin; r < end; ++r) {
      float* row = values + (keeps_values ? r : static_cast<std::size_t>(worker)) * cols;
      NormaliseRow(context.kernels, norm, x + r * cols, cols, row);
      for (const Form& form : std::span(forms, n_forms)) {
        form.kernel->prepare_input(row, cols, 1, {0, cols, cols}, form.data + r * form.row_bytes);
      }
    }
  });
}

}  // namespace slimformer::ops
