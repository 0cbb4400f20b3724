// The Python class PackedModel: a model while it loads, and once it runs.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "model/transformer.h"
#include "model/weights.h"

namespace slimformer::bindings {

class PackedModel {
 public:
  PackedModel(model::ModelSpec spec, const std::string& weights, const std::string& sparse,
              int threads, const std::optional<std::string>& tier);

  void LoadTensor(const std::string& name, const pybind11::array& values, bool kept);
  void MapTensor(const std::string& name, const pybind11::array& packed, const std::string& weights,
                 bool sparse);
  void Finish();

  // Error(config) before Finish.
  const model::Transformer& transformer() const;

  const kernels::KernelTable& kernels() const { return kernels_; }
  const ThreadPool& pool() const { return *pool_; }

 private:
  const kernels::KernelTable& kernels_;
  std::shared_ptr<ThreadPool> pool_;
  std::mutex loading_mutex_;
  model::WeightsBuilder builder_;
  std::unique_ptr<const model::Transformer> transformer_;
};

}  // namespace slimformer::bindings
