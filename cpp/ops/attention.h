// Attention over paged keys and values.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "ops/kv_pages.h"

namespace slimformer::ops {

// How scores come about.
struct ScoreRule {
  float scale;                        // of q K'
  std::optional<float> soft_cap;      // c: scores s become c tanh(s / c)
  std::optional<std::size_t> window;  // positions that a position sees, itself included
  bool causal;                        // whether a position sees none after it
};

// Queries [rows, *, head_dim] of a batch, rows `stride` floats apart, and what they are rotated by
// before they meet keys, if anything; the second before they meet the sinks of a window that has
// moved away from them.
struct Queries {
  const float* values;
  std::size_t stride;
  const Rotation* rotation;
  const Rotation* sink_rotation;
};

// out[r, h] = softmax(scale * q[r, h] K') V over the positions up to the row's own, or the last of
// them, for the query heads of all groups. out is [rows, *, value_dim], rows out_stride floats
// apart, and other heads of it are left as they are. Memory does not grow with the square of the
// length.
void Attend(const Context& context, const KvLayout& layout, std::span<const HeadGroup> groups,
            const ScoreRule& rule, std::span<const AttentionSequence> sequences, const Queries& q,
            float* out, std::size_t out_stride);

}  // namespace slimformer::ops
