#include "ops/rope.h"

#include <cmath>

#include "ops/rows.h"

namespace slimformer::ops {
namespace {

// A sine and a cosine cost about as much as this many values of an element-wise pass.
constexpr std::size_t kSineCost = 64;

}  // namespace

Rotation ComputeRotation(const Context& context, std::size_t pairs, float amplitude,
                         std::span<const RowPosition> rows) {
  auto* cosine = context.workspace.Take<float>(rows.size() * pairs);
  auto* sine = context.workspace.Take<float>(rows.size() * pairs);
  ForRows(context.pool, rows.size(), pairs * kSineCost, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t j = 0; j < pairs; ++j) {
        const float angle = static_cast<float>(rows[r].position) * rows[r].inverse_frequencies[j];
        const auto wide = static_cast<double>(angle);
        cosine[r * pairs + j] = amplitude * static_cast<float>(std::cos(wide));
        sine[r * pairs + j] = amplitude * static_cast<float>(std::sin(wide));
      }
    }
  });
  return {pairs, cosine, sine};
}

}  // namespace slimformer::ops
