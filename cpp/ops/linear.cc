#include "ops/linear.h"

#include <algorithm>

#include "ops/panels.h"

namespace slimformer::ops {

void Linear(ThreadPool& pool, tensor::Workspace& workspace, const LinearInput* inputs,
            std::span<const LinearOutput> outputs) {
  if (outputs.empty() || inputs->rows == 0) return;
  const tensor::PackedMatrix& any = outputs.front().matrix;
  const RowBlocks blocks = CutRows(inputs->rows, any.cols(), any.kernel());
  std::size_t panels = 0;
  std::size_t bytes = 0;
  PanelScratch scratch;
  for (const LinearOutput& output : outputs) {
    panels += output.matrix.panels();
    bytes += output.matrix.bytes();
    scratch.Include(output.matrix);
  }
  const std::size_t height = std::min(blocks.rows, blocks.height);
  const std::size_t flops = 2 * height * any.cols() * any.kernel().panel_width;
  const auto threads = static_cast<std::size_t>(pool.size());
  const std::size_t of_task = UnitsOfTask(flops, bytes / panels);
  const tensor::Workspace::Frame frame(workspace);
  scratch.Take(workspace, threads);
  // Tasks are numbered block by block: neighbours share their rows.
  const std::size_t groups = DivideUp(panels, of_task);
  pool.ParallelShares(blocks.count * groups, [&](std::size_t task, int worker) {
    const std::size_t row = blocks.First(task / groups);
    std::size_t first = task % groups * of_task;  // of the panels of all outputs, one after another
    std::size_t last = std::min(first + of_task, panels);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const LinearOutput& output = outputs[i];
      const std::size_t own = output.matrix.panels();
      if (first < own) {
        float* y = output.y + row * output.y_stride + first * output.matrix.kernel().panel_width;
        RunPanels(output.matrix, output.bias, inputs[i], row, blocks.Height(task / groups), first,
                  std::min(last, own), output.accumulate, y, output.y_stride, scratch.Of(worker));
      }
      if (last <= own) break;
      first -= std::min(first, own);
      last -= own;
    }
  });
}

void Linear(ThreadPool& pool, tensor::Workspace& workspace, const float* x, std::size_t x_stride,
            std::size_t rows, std::span<const LinearOutput> outputs) {
  if (rows == 0 || outputs.empty()) return;
  const tensor::Workspace::Frame frame(workspace);
  auto* kernels = workspace.Take<const kernels::GemmKernel*>(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) kernels[i] = &outputs[i].matrix.kernel();
  auto* inputs = workspace.Take<LinearInput>(outputs.size());
  PrepareInputs(pool, workspace, {kernels, outputs.size()}, x, x_stride, rows,
                outputs.front().matrix.cols(), inputs);
  Linear(pool, workspace, inputs, outputs);
}

void Linear(ThreadPool& pool, tensor::Workspace& workspace, const tensor::PackedMatrix& matrix,
            const float* x, std::size_t x_stride, std::size_t rows, float* y, std::size_t y_stride,
            const float* bias, bool accumulate) {
  const LinearOutput output{matrix, y, y_stride, bias, accumulate};
  Linear(pool, workspace, x, x_stride, rows, std::span(&output, 1));
}

void Linear(ThreadPool& pool, tensor::Workspace& workspace, const LinearInput& x,
            const LinearOutput& output) {
  Linear(pool, workspace, &x, std::span(&output, 1));
}

}  // namespace slimformer::ops
