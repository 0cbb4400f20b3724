#include "ops/embedding.h"

#include <cstddef>

#include "ops/rows.h"

namespace slimformer::ops {
namespace {

// A row lies scattered over its panel: each value is a cache line of its own.
constexpr std::size_t kGatherCost = 16;

}  // namespace

void Embed(const Context& context, const tensor::PackedMatrix& matrix,
           std::span<const std::int32_t> tokens, float* y) {
  const std::size_t n = matrix.cols();
  ForRows(context.pool, tokens.size(), n * kGatherCost, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      matrix.UnpackRow(static_cast<std::size_t>(tokens[r]), y + r * n);
    }
  });
}

}  // namespace slimformer::ops
