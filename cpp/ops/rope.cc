#include "ops/rope.h"

#include <cmath>

#include "ops/rows.h"

namespace slimformer::ops {
namespace {

// A sine and a cosine cost about as much as this many values of an element-wise pass.
constexpr std::size_t kSineCost = 64;

}  // namespace

Rotation ComputeRotation(const Context& context, std::span<const float> inverse_frequencies,
                         std::span<const std::int32_t> positions) {
  const std::size_t rows = positions.size();
  const std::size_t pairs = inverse_frequencies.size();
  auto* cosine = context.workspace.Take<float>(rows * pairs);
  auto* sine = context.workspace.Take<float>(rows * pairs);
  ForRows(context.pool, rows, pairs * kSineCost, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t j = 0; j < pairs; ++j) {
        const float angle = static_cast<float>(positions[r]) * inverse_frequencies[j];
        cosine[r * pairs + j] = static_cast<float>(std::cos(static_cast<double>(angle)));
        sine[r * pairs + j] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
  });
  return {pairs, cosine, sine};
}

void Rotate(const Context& context, const Rotation& rotation, std::size_t rows, std::size_t heads,
            std::size_t head_dim, float* x) {
  const std::size_t pairs = rotation.pairs;
  ForRows(context.pool, rows, heads * head_dim, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t h = 0; h < heads; ++h) {
        context.kernels.rope(x + (r * heads + h) * head_dim, rotation.cosine + r * pairs,
                             rotation.sine + r * pairs, pairs);
      }
    }
  });
}

}  // namespace slimformer::ops
