// Sums over the rows of matrices that pass by: what calibration knows of an activation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "tensor/workspace.h"

namespace slimformer::ops {

// Everything is accumulated in float64. Products are first summed in float32 over blocks of
// 1,024 rows, where the fast matrix product has an error of about 1e-6 of their size. A product
// of bfloat16 rounds x and target first: an error of 2^-8 in each value, independent from token to
// token, but twice the speed where the CPU multiplies bfloat16.
// The same rows, cut into updates in the same way, give the same bits for any number of threads.
// Several threads may use one object, each call seeing whole updates.
class Moments {
 public:
  // Without `gram` there is no X'X, with target_width 0 no X'Y. `gemm` multiplies.
  Moments(std::size_t width, bool gram, std::size_t target_width, const kernels::GemmKernel& gemm,
          std::shared_ptr<ThreadPool> pool);

  // Adds x [rows, width] and, where the moments have targets, target [rows, target_width].
  void Update(const float* x, const float* target, std::size_t rows);

  std::size_t width() const { return width_; }
  std::size_t target_width() const { return target_width_; }
  bool has_gram() const { return has_gram_; }
  std::int64_t count() const;

  // Write what has been added up so far.
  void CopySum(double* out) const;         // [width]
  void CopySumSquares(double* out) const;  // [width]
  void CopyCross(double* out) const;       // [width, target_width]
  void CopyGram(double* out) const;        // [width, width], exactly symmetric

 private:
  void UpdateSums(const float* x, std::size_t rows);

  // sums [width, right_width] += left right', left [width, rows] and right [right_width, rows].
  // If symmetric, only what lies on and below the diagonal is sure to be added.
  void AddProducts(const float* left, const float* right, std::size_t right_width, std::size_t rows,
                   bool symmetric, double* sums);

  std::size_t width_;
  std::size_t target_width_;
  bool has_gram_;
  const kernels::GemmKernel& gemm_;
  std::shared_ptr<ThreadPool> pool_;
  tensor::Workspace workspace_;

  mutable std::mutex mutex_;  // guards everything below, and the workspace
  std::int64_t count_ = 0;
  std::vector<double> sum_;
  std::vector<double> sum_squares_;
  std::vector<double> gram_;  // [width, width], right on and below the diagonal
  std::vector<double> cross_;
};

}  // namespace slimformer::ops
