// How the work of matrix products is cut: rows into blocks, panels into tasks.
#pragma once

#include <algorithm>
#include <cstddef>

#include "ops/linear_input.h"
#include "tensor/packed_matrix.h"
#include "tensor/workspace.h"

namespace slimformer::ops {

constexpr std::size_t DivideUp(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit; }
constexpr std::size_t RoundUp(std::size_t n, std::size_t unit) { return DivideUp(n, unit) * unit; }

// Rows are cut into blocks of `height`, the last one lower. A block of rows of x stays in the
// second-level cache while all panels of the weights pass over it.
struct RowBlocks {
  std::size_t rows;
  std::size_t height;
  std::size_t count;

  std::size_t First(std::size_t block) const { return block * height; }
  std::size_t Height(std::size_t block) const { return std::min(height, rows - First(block)); }
};

RowBlocks CutRows(std::size_t rows, std::size_t cols, const kernels::GemmKernel& kernel);

// How many pieces of the weights one task multiplies by one block of rows, where a piece takes
// `flops` operations and `bytes` of memory.
std::size_t UnitsOfTask(std::size_t flops, std::size_t bytes);

// Memory in which every thread expands the panels of sparse matrices. Lives as long as the frame
// of the workspace that was open when it was made.
class PanelScratch {
 public:
  // For products with any of the matrices that Include() was called for.
  void Include(const tensor::PackedMatrix& matrix) noexcept {
    bytes_ = std::max(bytes_, matrix.scratch_bytes());
  }
  void Take(tensor::Workspace& workspace, std::size_t threads) {
    memory_ = workspace.Take<std::byte>(threads * bytes_);
  }
  std::byte* Of(int worker) const noexcept {
    return memory_ + static_cast<std::size_t>(worker) * bytes_;
  }

 private:
  std::size_t bytes_ = 0;  // of a thread
  std::byte* memory_ = nullptr;
};

// y [height, outputs of the panels] (+)= rows [first_row, first_row + height) of x times panels
// [first, last) + bias [rows of the matrix], which may be null. Rows of y are y_stride floats
// apart. `scratch` is the thread's, see PanelScratch.
void RunPanels(const tensor::PackedMatrix& matrix, const float* bias, const LinearInput& x,
               std::size_t first_row, std::size_t height, std::size_t first, std::size_t last,
               bool accumulate, float* y, std::size_t y_stride, std::byte* scratch);

}  // namespace slimformer::ops
