#include "ops/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/rows.h"

namespace slimformer::ops {
namespace {

// One of the experts that a row runs.
struct Choice {
  std::size_t expert;  // index in the list of kept ones
  float logit;
};

// Not a number would have no place in an order.
float Comparable(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

}  // namespace

std::vector<ExpertRows> Route(const Context& context, const float* logits, std::size_t rows,
                              std::size_t n_experts, std::span<const std::size_t> kept,
                              std::size_t top_k, SoftmaxOver softmax_over) {
  const std::size_t n = kept.size();
  const std::size_t k = std::min(top_k, n);
  const tensor::Workspace::Frame frame(context.workspace);
  auto* chosen = context.workspace.Take<Choice>(rows * k);  // [rows, k]
  auto* weights = context.workspace.Take<float>(rows * k);  // [rows, k]
  ForRows(context.pool, rows, 8 * n, [&](std::size_t begin, std::size_t end) {
    std::vector<Choice> choices(n);
    std::vector<float> values(n);
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t i = 0; i < n; ++i) {
        values[i] = Comparable(logits[r * n_experts + kept[i]]);
        choices[i] = {i, values[i]};
      }
      std::ranges::partial_sort(choices, choices.begin() + static_cast<std::ptrdiff_t>(k),
                                [](const Choice& a, const Choice& b) {
                                  return a.logit > b.logit ||
                                         (a.logit == b.logit && a.expert < b.expert);
                                });
      const bool over_chosen = softmax_over == SoftmaxOver::chosen;
      if (over_chosen) std::ranges::transform(choices, values.begin(), &Choice::logit);
      const float total = context.kernels.log_sum_exp(values.data(), over_chosen ? k : n);
      for (std::size_t i = 0; i < k; ++i) {
        chosen[r * k + i] = choices[i];
        weights[r * k + i] = std::exp(choices[i].logit - total);
      }
    }
  });
  std::vector<ExpertRows> routed(n);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = r * k; i < (r + 1) * k; ++i) {
      routed[chosen[i].expert].rows.push_back(r);
      routed[chosen[i].expert].weights.push_back(weights[i]);
    }
  }
  return routed;
}

void GatherRows(const Context& context, const float* x, std::span<const std::size_t> rows,
                std::size_t n, float* to) {
  ForRows(context.pool, rows.size(), n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) std::copy_n(x + rows[i] * n, n, to + i * n);
  });
}

void AddWeightedRows(const Context& context, const ExpertRows& to, std::size_t n, float* x,
                     float* y) {
  ForRows(context.pool, to.rows.size(), n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      context.kernels.scale(to.weights[i], x + i * n, n, x + i * n);
      context.kernels.add(x + i * n, n, y + to.rows[i] * n);
    }
  });
}

}  // namespace slimformer::ops
