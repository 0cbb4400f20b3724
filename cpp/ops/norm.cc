#include "ops/norm.h"

#include "ops/rows.h"

namespace slimformer::ops {

void RmsNorm(const Context& context, const float* x, std::size_t rows, std::size_t n,
             const float* weight, float eps, std::size_t divisor, float* y) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      context.kernels.rms_norm(x + r * n, weight, eps, divisor, n, y + r * n);
    }
  });
}

void LayerNorm(const Context& context, const float* x, std::size_t rows, std::size_t n,
               const float* weight, const float* bias, float eps, float* y) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      context.kernels.layer_norm(x + r * n, weight, bias, eps, n, y + r * n);
    }
  });
}

}  // namespace slimformer::ops
