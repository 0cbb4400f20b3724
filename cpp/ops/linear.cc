#include "ops/linear.h"

#include <algorithm>

#include "kernels/kernel_table.h"
#include "ops/rows.h"

namespace slimformer::ops {
namespace {

using kernels::GemmKernel;
using tensor::PackedMatrix;

// A block of rows of x stays in the second-level cache (1 MiB or more) while all panels of the
// weights pass over it.
constexpr std::size_t kRowBlockBytes = std::size_t{384} << 10;
constexpr std::size_t kMostBlockRows = 192;

// A task is worth handing out from some ten microseconds of arithmetic on. Where reading weights is
// what takes time, every thread gets the same number of tasks, as few as this size allows: at the
// end of each, what it fetched ahead is another thread's to use.
constexpr std::size_t kTaskFlops = std::size_t{4} << 20;
constexpr std::size_t kTaskBytes = std::size_t{512} << 10;

constexpr std::size_t DivideUp(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit; }
constexpr std::size_t RoundUp(std::size_t n, std::size_t unit) { return DivideUp(n, unit) * unit; }

// Rows are cut into blocks of `height`, the last one lower.
struct RowBlocks {
  std::size_t rows;
  std::size_t height;
  std::size_t count;

  std::size_t First(std::size_t block) const { return block * height; }
  std::size_t Height(std::size_t block) const { return std::min(height, rows - First(block)); }
};

// Bytes of a row of x as the kernel reads it.
std::size_t RowBytes(std::size_t cols, const GemmKernel& kernel) {
  return kernel.prepare_input == nullptr ? cols * sizeof(float) : kernel.input_row_bytes(cols);
}

RowBlocks CutRows(std::size_t rows, std::size_t cols, const GemmKernel& kernel) {
  const std::size_t fitting = kRowBlockBytes / RowBytes(cols, kernel);
  const std::size_t most = std::clamp(fitting, 4 * kernel.tile_rows, kMostBlockRows);
  const std::size_t height = RoundUp(DivideUp(rows, DivideUp(rows, most)), kernel.tile_rows);
  return {rows, height, DivideUp(rows, height)};
}

// Panels of all outputs, one after another, that one task multiplies by one block of rows.
std::size_t PanelsOfTask(std::span<const LinearOutput> outputs, std::size_t panels,
                         const RowBlocks& blocks, std::size_t threads) {
  const PackedMatrix& any = outputs.front().matrix;
  const std::size_t height = std::min(blocks.rows, blocks.height);
  const std::size_t flops = 2 * height * any.cols() * any.kernel().panel_width;
  std::size_t bytes = 0;
  for (const LinearOutput& output : outputs) bytes += output.matrix.bytes();
  const std::size_t tasks = RoundUp(DivideUp(bytes, kTaskBytes), threads);
  return std::min(DivideUp(kTaskFlops, flops), DivideUp(panels, tasks));
}

// x as the kernel reads it.
struct Input {
  const std::byte* data;
  std::size_t stride;     // floats from row to row; of no meaning where x was prepared
  std::size_t row_bytes;  // from row to row

  const void* Row(std::size_t row) const { return data + row * row_bytes; }
};

Input PrepareInput(ThreadPool& pool, tensor::Workspace& workspace, const GemmKernel& kernel,
                   const float* x, std::size_t x_stride, std::size_t rows, std::size_t cols) {
  if (kernel.prepare_input == nullptr) {
    return {reinterpret_cast<const std::byte*>(x), x_stride, x_stride * sizeof(float)};
  }
  const std::size_t row_bytes = kernel.input_row_bytes(cols);
  auto* prepared = workspace.Take<std::byte>(rows * row_bytes);
  ForRows(pool, rows, cols, [&](std::size_t begin, std::size_t end) {
    kernel.prepare_input(x + begin * x_stride, x_stride, end - begin, cols,
                         prepared + begin * row_bytes);
  });
  return {prepared, x_stride, row_bytes};
}

void AddBias(const float* bias, std::size_t outputs, std::size_t rows, float* y,
             std::size_t y_stride) {
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < outputs; ++c) y[r * y_stride + c] += bias[c];
  }
}

// Panels [first, last) of one layer for one block of rows.
void RunPanels(const LinearOutput& output, const Input& input, const RowBlocks& blocks,
               std::size_t block, std::size_t first, std::size_t last) {
  const PackedMatrix& matrix = output.matrix;
  const GemmKernel& kernel = matrix.kernel();
  const std::size_t rows = blocks.Height(block);
  float* y = output.y + blocks.First(block) * output.y_stride;
  for (std::size_t panel = first; panel < last; ++panel) {
    const std::size_t column = panel * kernel.panel_width;
    const std::size_t outputs = std::min(kernel.panel_width, matrix.rows() - column);
    kernel.multiply(input.Row(blocks.First(block)), input.stride, rows, matrix.panel(panel),
                    matrix.cols(), y + column, output.y_stride, outputs, output.accumulate);
    if (output.bias != nullptr) {
      AddBias(output.bias + column, outputs, rows, y + column, output.y_stride);
    }
  }
}

}  // namespace

void Linear(ThreadPool& pool, tensor::Workspace& workspace, const float* x, std::size_t x_stride,
            std::size_t rows, std::span<const LinearOutput> outputs) {
  if (rows == 0 || outputs.empty()) return;
  const GemmKernel& kernel = outputs.front().matrix.kernel();
  const std::size_t cols = outputs.front().matrix.cols();
  const RowBlocks blocks = CutRows(rows, cols, kernel);
  const tensor::Workspace::Frame frame(workspace);
  auto* inputs = workspace.Take<Input>(outputs.size());  // x as each of the outputs reads it
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const GemmKernel& own = outputs[i].matrix.kernel();
    const auto same = std::ranges::find_if(outputs.first(i), [&](const LinearOutput& other) {
      return other.matrix.kernel().prepare_input == own.prepare_input;
    });
    const auto before = static_cast<std::size_t>(same - outputs.begin());
    inputs[i] =
        before < i ? inputs[before] : PrepareInput(pool, workspace, own, x, x_stride, rows, cols);
  }

  std::size_t panels = 0;
  for (const LinearOutput& output : outputs) panels += output.matrix.panels();
  const auto threads = static_cast<std::size_t>(pool.size());
  const std::size_t of_task = PanelsOfTask(outputs, panels, blocks, threads);
  // Tasks are numbered block by block: neighbours share their rows.
  const std::size_t groups = DivideUp(panels, of_task);
  pool.ParallelFor(blocks.count * groups, [&](std::size_t task, int) {
    std::size_t first = task % groups * of_task;
    std::size_t last = std::min(first + of_task, panels);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::size_t own = outputs[i].matrix.panels();
      if (first < own) {
        RunPanels(outputs[i], inputs[i], blocks, task / groups, first, std::min(last, own));
      }
      if (last <= own) break;
      first -= std::min(first, own);
      last -= own;
    }
  });
}

void Linear(ThreadPool& pool, tensor::Workspace& workspace, const tensor::PackedMatrix& matrix,
            const float* x, std::size_t x_stride, std::size_t rows, float* y, std::size_t y_stride,
            const float* bias, bool accumulate) {
  const LinearOutput output{matrix, y, y_stride, bias, accumulate};
  Linear(pool, workspace, x, x_stride, rows, std::span(&output, 1));
}

}  // namespace slimformer::ops
