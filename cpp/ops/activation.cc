#include "ops/activation.h"

#include "ops/rows.h"

namespace slimformer::ops {

void Activate(const Context& context, kernels::ActivationKernel activation, const float* factors,
              std::size_t rows, std::size_t n, float* x) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    activation(x + begin * n, nullptr, (end - begin) * n, x + begin * n);
  });
  if (factors != nullptr) MultiplyRows(context, factors, rows, n, x);
}

void MultiplyRows(const Context& context, const float* factors, std::size_t rows, std::size_t n,
                  float* x) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) context.kernels.multiply(factors, n, x + r * n);
  });
}

void AddToRows(const Context& context, const float* values, std::size_t rows, std::size_t n,
               float* x) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) context.kernels.add(values, n, x + r * n);
  });
}

void SoftCap(const Context& context, float cap, std::size_t rows, std::size_t n, float* x) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    context.kernels.soft_cap(cap, (end - begin) * n, x + begin * n);
  });
}

void Scale(const Context& context, float factor, std::size_t rows, std::size_t n, float* x) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    context.kernels.scale(factor, x + begin * n, (end - begin) * n, x + begin * n);
  });
}

void Add(const Context& context, const float* x, std::size_t rows, std::size_t n, float* y) {
  ForRows(context.pool, rows, n, [&](std::size_t begin, std::size_t end) {
    context.kernels.add(x + begin * n, (end - begin) * n, y + begin * n);
  });
}

}  // namespace slimformer::ops
