// The machine's limits, measured: what a kernel's speed is to be compared with.
#pragma once

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"

namespace slimformer::ops {

struct Roofline {
  double gflops;        // float32 operations per nanosecond, all threads of the pool together
  double gbytes_per_s;  // bytes read from memory per nanosecond, all threads together
};

// The best of several short runs of each probe; takes about `seconds`. Reads a buffer far larger
// than the caches (256 MiB).
Roofline MeasureRoofline(ThreadPool& pool, const kernels::KernelTable& kernels, double seconds);

}  // namespace slimformer::ops
