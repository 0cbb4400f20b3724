#include "bindings/time_attention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "tensor/workspace.h"

namespace slimformer::bindings {
namespace {

using kernels::kPagePositions;

// Values between -1 and 1, the same every time.
std::vector<float> Values(std::size_t n) {
  std::vector<float> values(n);
  std::uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<float>(state >> 8) * 0x1p-23F - 1.0F;
  }
  return values;
}

std::vector<ops::HeadGroup> Groups(const AttentionShape& shape) {
  std::vector<ops::HeadGroup> groups(shape.kv_heads);
  for (std::size_t head = 0; head < shape.heads; ++head) {
    groups[head * shape.kv_heads / shape.heads].heads.push_back(head);
  }
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].kv_head = i;
  return groups;
}

}  // namespace

double TimeAttention(const kernels::KernelTable& kernels, ThreadPool& pool, ops::KvType type,
                     const AttentionShape& shape, std::size_t layers, int repeats) {
  tensor::Workspace workspace;
  const ops::Context context{kernels, pool, workspace};
  const ops::KvLayout layout{type, shape.kv_heads, shape.head_dim, shape.head_dim};
  const std::vector<ops::HeadGroup> groups = Groups(shape);
  const std::size_t pages = (shape.context + kPagePositions - 1) / kPagePositions;
  const std::size_t kv_width = shape.kv_heads * shape.head_dim;
  const std::size_t q_width = shape.heads * shape.head_dim;
  std::vector<float> kv = Values(shape.context * kv_width);
  const std::vector<float> q = Values(shape.rows * q_width);
  std::vector<float> out(shape.rows * q_width);

  AlignedBuffer<std::byte> memory(layers * pages * layout.PageBytes());
  std::fill_n(memory.data(), memory.size(), std::byte{});
  std::vector<ops::AttentionSequence> sequences;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    ops::AttentionSequence whole{0, shape.context, 0, {}, {}};
    for (std::size_t page = 0; page < pages; ++page) {
      whole.pages.push_back(memory.data() + (layer * pages + page) * layout.PageBytes());
    }
    ops::StoreKeysAndValues(context, layout, groups, std::span(&whole, 1), kv.data(), kv_width,
                            nullptr, kv.data(), kv_width);
    sequences.push_back({0, shape.rows, shape.context - shape.rows, std::move(whole.pages), {}});
  }

  const float scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  const ops::ScoreRule rule{scale, std::nullopt, std::nullopt, true};
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (const ops::AttentionSequence& sequence : sequences) {
      ops::Attend(context, layout, groups, rule, std::span(&sequence, 1),
                  {q.data(), q_width, nullptr, nullptr}, out.data(), q_width);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best / static_cast<double>(layers);
}

}  // namespace slimformer::bindings
