// Work on independent rows, cut into tasks.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/thread_pool.h"

namespace slimformer::ops {

// Handing out a loop costs a few microseconds, as much as an element-wise pass over this many
// values; less work than that stays on the calling thread.
inline constexpr std::size_t kValuesPerTask = 16384;

// Calls work(begin, end) on ranges that cover [0, rows). A row costs about `row_values` values.
template <class F>
void ForRows(ThreadPool& pool, std::size_t rows, std::size_t row_values, F&& work) {
  const std::size_t per_task =
      std::max<std::size_t>(1, kValuesPerTask / std::max<std::size_t>(1, row_values));
  if (rows <= per_task) {
    work(std::size_t{0}, rows);
    return;
  }
  pool.ParallelFor((rows + per_task - 1) / per_task, [&](std::size_t task, int) {
    work(task * per_task, std::min(rows, (task + 1) * per_task));
  });
}

}  // namespace slimformer::ops
