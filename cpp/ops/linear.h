// Linear layers: y = x W' + b over packed weights.
#pragma once

#include <cstddef>
#include <span>

#include "base/thread_pool.h"
#include "ops/linear_input.h"
#include "tensor/packed_matrix.h"
#include "tensor/workspace.h"

namespace slimformer::ops {

// One of the layers that read the same input.
struct LinearOutput {
  const tensor::PackedMatrix& matrix;  // [outputs, inputs]
  float* y;                            // [rows, outputs]
  std::size_t y_stride;                // floats from one row of y to the next
  const float* bias = nullptr;         // [outputs] or null
  bool accumulate = false;             // add to y instead of replacing it
};

// Runs all `outputs` over x [rows, inputs] (rows `x_stride` floats apart) as one parallel loop:
// queries, keys and values, or gate and up. All matrices must have the same number of inputs and
// tier, and the same weight type or int8 and int4, whose tiles are alike. Threads share out panels
// and blocks of rows, never a sum: any number of threads gives the same bits.
// No y may overlap x.
void Linear(ThreadPool& pool, tensor::Workspace& workspace, const float* x, std::size_t x_stride,
            std::size_t rows, std::span<const LinearOutput> outputs);

// The same over inputs [outputs]: x in the form that each output's matrix reads.
void Linear(ThreadPool& pool, tensor::Workspace& workspace, const LinearInput* inputs,
            std::span<const LinearOutput> outputs);

// A single layer over rows that are in the form its matrix reads.
void Linear(ThreadPool& pool, tensor::Workspace& workspace, const LinearInput& x,
            const LinearOutput& output);

// A single layer over float32 rows.
void Linear(ThreadPool& pool, tensor::Workspace& workspace, const tensor::PackedMatrix& matrix,
            const float* x, std::size_t x_stride, std::size_t rows, float* y, std::size_t y_stride,
            const float* bias = nullptr, bool accumulate = false);

}  // namespace slimformer::ops
