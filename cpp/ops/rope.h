// Rotary position embedding (Su et al. 2021).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/context.h"

namespace slimformer::ops {

// The angles of a batch of rows.
struct Rotation {
  std::size_t pairs;
  const float* cosine;  // [rows, pairs]
  const float* sine;    // [rows, pairs]
};

// A row's place in its sequence, and how its pairs turn on the way there.
struct RowPosition {
  std::int32_t position;
  const float* inverse_frequencies;  // [pairs], radians per position
};

// The rotation of rows, in memory of the context's workspace; cosines and sines are multiplied by
// the amplitude. An angle is the float32 product of position and inverse frequency, as the models
// were trained with.
Rotation ComputeRotation(const Context& context, std::size_t pairs, float amplitude,
                         std::span<const RowPosition> rows);

// Rotates a head of one of the rows in place: its pairs (j, j + pairs).
inline void RotateHead(const kernels::KernelTable& kernels, const Rotation& rotation,
                       std::size_t row, float* head) {
  const std::size_t first = row * rotation.pairs;
  kernels.rope(head, rotation.cosine + first, rotation.sine + first, rotation.pairs);
}

}  // namespace slimformer::ops
