// The sparse form of the products in gemm_bf16-inl.h. Few rows are multiplied as the dense product
// does it. To be included after the tier's vector-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/few_rows-inl.h"
#include "kernels/amx/gemm_bf16-inl.h"
#include "kernels/avx512_bf16/expand-inl.h"
#include "kernels/sparse_gemm-inl.h"

namespace slimformer::kernels {
namespace {
namespace amx {

using SparseForm = sparse::PanelForm<Bf16DotPanel>;
using SparseExpander = RegisterExpander<sizeof(std::uint16_t)>;

void MultiplySparseBf16(const void* x, std::size_t, std::size_t rows, const void* compressed,
                        std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                        bool accumulate) noexcept {
  const sparse::Shape shape = SparseForm::ShapeOf(k);
  sparse::Cursor<SparseForm> cursor(compressed, shape);
  const auto next_step = [&](__m512i(&pairs)[2]) {
    alignas(64) std::byte step[kStepBytes];
    sparse::ExpandStep<SparseForm, SparseExpander>(cursor, step);
    pairs[0] = _mm512_load_si512(step);
    pairs[1] = _mm512_load_si512(step + kTileBytes);
  };
  MultiplyFewRows(x, rows, k, y, y_stride, outputs, accumulate, next_step);
}

// The sparse form of `dense`, the product by tiles.
constexpr SparseKernel MakeSparseBf16(const GemmKernel& dense, float least_zeros) noexcept {
  SparseKernel kernel = sparse::MakeSparse<SparseForm, SparseExpander>(dense, least_zeros);
  kernel.most_rows = kFewRows;
  kernel.multiply = &MultiplySparseBf16;
  return kernel;
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
