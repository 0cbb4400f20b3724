// The machine's limits, measured: what a kernel's speed is to be compared with.
#pragma once

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"

namespace slimformer::ops {

struct Roofline {
  double gflops;        // float32 operations per nanosecond, all threads of the pool together
  double gbytes_per_s;  // bytes read from memory per nanosecond, all threads together
};

// Takes about `seconds`, half of them for each probe. Of operations it is the best of several short
// runs: whatever else runs can only slow them down. Of reads, of a buffer far larger than the
// caches (256 MiB), it is the mean: memory gives twice as much in one instant as in the next, and
// what reads it for a while gets neither.
Roofline MeasureRoofline(ThreadPool& pool, const kernels::KernelTable& kernels, double seconds);

}  // namespace slimformer::ops
