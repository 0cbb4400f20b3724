// What every operation runs on.
#pragma once

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "tensor/workspace.h"

namespace slimformer::ops {

struct Context {
  const kernels::KernelTable& kernels;
  ThreadPool& pool;
  tensor::Workspace& workspace;
};

}  // namespace slimformer::ops
