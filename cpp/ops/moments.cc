#include "ops/moments.h"

#include <algorithm>
#include <utility>

#include "ops/linear_input.h"
#include "ops/rows.h"

namespace slimformer::ops {
namespace {

// A block of rows whose products are summed in float32.
constexpr std::size_t kBlockRows = 1024;

// Columns of x whose products with one panel are computed at a time: the tile that is added to
// float64 stays in L1.
constexpr std::size_t kTileColumns = 64;

// out[c, r] = x[r, c].
void Transpose(ThreadPool& pool, const float* x, std::size_t rows, std::size_t columns,
               float* out) {
  constexpr std::size_t kTile = 16;
  const std::size_t tiles = (columns + kTile - 1) / kTile;
  ForRows(pool, tiles, kTile * rows, [&](std::size_t begin, std::size_t end) {
    for (std::size_t first = begin * kTile; first < std::min(columns, end * kTile);
         first += kTile) {
      const std::size_t last = std::min(columns, first + kTile);
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t c = first; c < last; ++c) out[c * rows + r] = x[r * columns + c];
      }
    }
  });
}

// The rows of a matrix as a kernel reads them, kTileColumns at a time.
struct Tiles {
  const std::byte* data;
  std::size_t bytes;  // from one tile to the next
  std::size_t count;
};

// left [width, rows].
Tiles PrepareTiles(ThreadPool& pool, tensor::Workspace& workspace, const kernels::GemmKernel& gemm,
                   const float* left, std::size_t width, std::size_t rows) {
  const std::size_t count = (width + kTileColumns - 1) / kTileColumns;
  const LinearInput input = PrepareInput(pool, workspace, gemm, left, rows, width, rows);
  return {input.data, kTileColumns * input.row_bytes, count};
}

}  // namespace

Moments::Moments(std::size_t width, bool gram, std::size_t target_width,
                 const kernels::GemmKernel& gemm, std::shared_ptr<ThreadPool> pool)
    : width_(width),
      target_width_(target_width),
      has_gram_(gram),
      gemm_(gemm),
      pool_(std::move(pool)),
      sum_(width),
      sum_squares_(width),
      gram_(gram ? width * width : 0),
      cross_(width * target_width) {}

void Moments::Update(const float* x, const float* target, std::size_t rows) {
  const std::lock_guard lock(mutex_);
  for (std::size_t first = 0; first < rows; first += kBlockRows) {
    const std::size_t n = std::min(kBlockRows, rows - first);
    const float* block = x + first * width_;
    UpdateSums(block, n);
    if (has_gram_ || target_width_ > 0) {
      const tensor::Workspace::Frame frame(workspace_);
      auto* columns = workspace_.Take<float>(width_ * n);  // [width, n]
      Transpose(*pool_, block, n, width_, columns);
      if (has_gram_) AddProducts(columns, columns, width_, n, true, gram_.data());
      if (target_width_ > 0) {
        auto* target_columns = workspace_.Take<float>(target_width_ * n);  // [target_width, n]
        Transpose(*pool_, target + first * target_width_, n, target_width_, target_columns);
        AddProducts(columns, target_columns, target_width_, n, false, cross_.data());
      }
    }
    count_ += static_cast<std::int64_t>(n);
  }
}

void Moments::UpdateSums(const float* x, std::size_t rows) {
  ForRows(*pool_, width_, rows, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = begin; c < end; ++c) {
        const auto value = static_cast<double>(x[r * width_ + c]);
        sum_[c] += value;
        sum_squares_[c] += value * value;
      }
    }
  });
}

void Moments::AddProducts(const float* left, const float* right, std::size_t right_width,
                          std::size_t rows, bool symmetric, double* sums) {
  const std::size_t panels = (right_width + gemm_.panel_width - 1) / gemm_.panel_width;
  const auto workers = static_cast<std::size_t>(pool_->size());
  const tensor::Workspace::Frame frame(workspace_);
  const Tiles tiles = PrepareTiles(*pool_, workspace_, gemm_, left, width_, rows);
  auto* packed = workspace_.Take<std::byte>(workers * gemm_.panel_bytes(rows));
  auto* products = workspace_.Take<float>(workers * kTileColumns * gemm_.panel_width);
  pool_->ParallelFor(panels, [&](std::size_t panel, int worker) {
    const std::size_t first = panel * gemm_.panel_width;
    const std::size_t outputs = std::min(gemm_.panel_width, right_width - first);
    const auto mine = static_cast<std::size_t>(worker);
    std::byte* panel_data = packed + mine * gemm_.panel_bytes(rows);
    float* tile = products + mine * kTileColumns * gemm_.panel_width;
    gemm_.pack_panel(right + first * rows, rows, outputs, rows, panel_data);
    for (std::size_t t = symmetric ? first / kTileColumns : 0; t < tiles.count; ++t) {
      const std::size_t column = t * kTileColumns;
      const std::size_t n = std::min(kTileColumns, width_ - column);
      gemm_.multiply(tiles.data + t * tiles.bytes, rows, n, panel_data, rows, tile,
                     gemm_.panel_width, outputs, false);
      for (std::size_t i = 0; i < n; ++i) {
        double* row = sums + (column + i) * right_width + first;
        for (std::size_t j = 0; j < outputs; ++j) {
          row[j] += static_cast<double>(tile[i * gemm_.panel_width + j]);
        }
      }
    }
  });
}

std::int64_t Moments::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

void Moments::CopySum(double* out) const {
  const std::lock_guard lock(mutex_);
  std::ranges::copy(sum_, out);
}

void Moments::CopySumSquares(double* out) const {
  const std::lock_guard lock(mutex_);
  std::ranges::copy(sum_squares_, out);
}

void Moments::CopyCross(double* out) const {
  const std::lock_guard lock(mutex_);
  std::ranges::copy(cross_, out);
}

void Moments::CopyGram(double* out) const {
  const std::lock_guard lock(mutex_);
  for (std::size_t r = 0; r < width_; ++r) {
    for (std::size_t c = 0; c <= r; ++c) {
      out[r * width_ + c] = out[c * width_ + r] = gram_[r * width_ + c];
    }
  }
}

}  // namespace slimformer::ops
