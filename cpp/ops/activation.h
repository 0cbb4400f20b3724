// Element-wise operations on rows.
#pragma once

#include <cstddef>

#include "ops/context.h"

namespace slimformer::ops {

// x[r] = activation(x[r]) * factors, x [rows, n], factors [n] or null.
void Activate(const Context& context, kernels::ActivationKernel activation, const float* factors,
              std::size_t rows, std::size_t n, float* x);

// x[r] *= factors, x [rows, n], factors [n].
void MultiplyRows(const Context& context, const float* factors, std::size_t rows, std::size_t n,
                  float* x);

// x[r] += values, x [rows, n], values [n].
void AddToRows(const Context& context, const float* values, std::size_t rows, std::size_t n,
               float* x);

// x = cap * tanh(x / cap), [rows, n].
void SoftCap(const Context& context, float cap, std::size_t rows, std::size_t n, float* x);

// x *= factor, [rows, n].
void Scale(const Context& context, float factor, std::size_t rows, std::size_t n, float* x);

// y += x, [rows, n].
void Add(const Context& context, const float* x, std::size_t rows, std::size_t n, float* y);

}  // namespace slimformer::ops
