// Work on independent rows, cut into tasks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "base/thread_pool.h"

namespace slimformer::ops {

// Handing out a loop costs a few microseconds, as much as an element-wise pass over this many
// values; less work than that stays on the calling thread.
inline constexpr std::size_t kValuesPerTask = 16384;

// Calls work(begin, end), or work(begin, end, worker), on ranges that cover [0, rows). A row costs
// about `row_values` values.
template <class F>
void ForRows(ThreadPool& pool, std::size_t rows, std::size_t row_values, F&& work) {
  const auto run = [&](std::size_t begin, std::size_t end, int worker) {
    if constexpr (std::is_invocable_v<F&, std::size_t, std::size_t, int>) {
      work(begin, end, worker);
    } else {
      work(begin, end);
    }
  };
  const std::size_t per_task =
      std::max<std::size_t>(1, kValuesPerTask / std::max<std::size_t>(1, row_values));
  if (rows <= per_task) {
    run(0, rows, 0);
    return;
  }
  pool.ParallelFor((rows + per_task - 1) / per_task, [&](std::size_t task, int worker) {
    run(task * per_task, std::min(rows, (task + 1) * per_task), worker);
  });
}

}  // namespace slimformer::ops
