// Timing attention on its own, for the benchmark in bench/.
#pragma once

#include <cstddef>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "ops/attention.h"

namespace slimformer::bindings {

struct AttentionShape {
  std::size_t heads;
  std::size_t kv_heads;  // of as many query heads each
  std::size_t head_dim;  // of values, too
  std::size_t context;   // positions, of which the last `rows` are queries
  std::size_t rows;
};

// Seconds that attention of one layer takes, the best of `repeats` rounds over `layers` of them.
// Going round over many layers keeps keys and values out of the caches, as a model does.
double TimeAttention(const kernels::KernelTable& kernels, ThreadPool& pool, ops::KvType type,
                     const AttentionShape& shape, std::size_t layers, int repeats);

}  // namespace slimformer::bindings
