// Which experts of a routed layer each row runs, and by how much their outputs count.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "ops/context.h"

namespace slimformer::ops {

// What the weights of the chosen experts are a softmax over.
enum class SoftmaxOver { experts, chosen };

// The rows that run one expert, ascending, and the weight of its output for each.
struct ExpertRows {
  std::vector<std::size_t> rows;
  std::vector<float> weights;
};

// Routes rows by logits [rows, n_experts]: each runs the `top_k` of the experts `kept` (ascending)
// that have the highest logits, of equal ones the first; all, if there are no more. Returns the
// rows of each of these experts. Logits of other experts are as good as not there.
std::vector<ExpertRows> Route(const Context& context, const float* logits, std::size_t rows,
                              std::size_t n_experts, std::span<const std::size_t> kept,
                              std::size_t top_k, SoftmaxOver softmax_over);

// to[i] = x[rows[i]], x [*, n], to [rows, n].
void GatherRows(const Context& context, const float* x, std::span<const std::size_t> rows,
                std::size_t n, float* to);

// y[rows[i]] += weights[i] * x[i], x [rows, n], y [*, n]; no row comes twice. Rows of x are
// multiplied in place.
void AddWeightedRows(const Context& context, const ExpertRows& to, std::size_t n, float* x,
                     float* y);

}  // namespace slimformer::ops
