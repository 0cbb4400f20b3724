#include "ops/norm.h"

#include "ops/rows.h"

namespace slimformer::ops {

void NormaliseRow(const kernels::KernelTable& kernels, const Norm& norm, const float* x,
                  std::size_t n, float* y) {
  if (norm.kind == NormKind::layer) {
    kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, n, y);
  } else {
    kernels.rms_norm(x, norm.weight, norm.eps, norm.divisor, n, y);
  }
}

void NormaliseRows(const Context& context, const Norm& norm, const float* x, std::size_t rows,
                   std::size_t n, float* y) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      NormaliseRow(context.kernels, norm, x + r * n, n, y + r * n);
    }
  });
}

}  // namespace slimformer::ops
