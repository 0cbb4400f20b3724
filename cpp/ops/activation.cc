#include "ops/activation.h"

#include "ops/rows.h"

namespace slimformer::ops {

void MultiplyRows(const Context& context, const float* factors, std::size_t rows, std::size_t n,
                  float* x) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) context.kernels.multiply(factors, n, x + r * n);
  });
}

void Add(const Context& context, const float* x, std::size_t rows, std::size_t n, float* y) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    context.kernels.add(x + begin * n, (end - begin) * n, y + begin * n);
  });
}

}  // namespace slimformer::ops
