#include "ops/gated.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/panels.h"

namespace slimformer::ops {
namespace {

// One thread's products of a block of rows, [rows of the block, unit] each.
struct Scratch {
  float* gate;
  float* up;
};

// With so many pieces of work for each thread, none waits long for the last of the others.
constexpr std::size_t kPiecesOfThread = 8;

// Where the neurons of all rows go: as float32 values, or prepared for a reader.
struct Target {
  float* values;  // [rows, neurons] or null
  std::byte* prepared;
  std::size_t row_bytes;
};

}  // namespace

LinearInput GatedNeurons(const Context& context, const GatedLayers& layers,
                         const LinearInput (&inputs)[2], const kernels::GemmKernel& reader,
                         float* neurons) {
  tensor::Workspace& workspace = context.workspace;
  const std::size_t rows = inputs[0].rows;
  const std::size_t n = layers.gate.rows();
  const kernels::GemmKernel& kernel = layers.gate.kernel();
  const std::size_t cols = layers.gate.cols();
  const RowBlocks blocks = CutRows(rows, cols, kernel);
  const auto threads = static_cast<std::size_t>(context.pool.size());
  // Whole panels of both layers that are whole pieces of the reader's input, too, which is then
  // prepared while they are at hand; or panels, where so few pieces would not share out evenly.
  std::size_t unit = std::lcm(kernel.panel_width, reader.input_unit);
  if (blocks.count * DivideUp(n, unit) < kPiecesOfThread * threads) unit = kernel.panel_width;
  if (neurons == nullptr && (reader.prepare_input == nullptr || unit % reader.input_unit != 0)) {
    neurons = workspace.Take<float>(rows * n);
  }
  Target target{neurons, nullptr, InputRowBytes(reader, n)};
  if (neurons == nullptr) target.prepared = workspace.Take<std::byte>(rows * target.row_bytes);

  {
    const tensor::Workspace::Frame frame(workspace);
    const std::size_t unit_panels = unit / kernel.panel_width;
    const std::size_t units = DivideUp(n, unit);
    const std::size_t height = std::min(blocks.rows, blocks.height);
    const std::size_t of_task =
        UnitsOfTask(4 * height * cols * unit, (layers.gate.bytes() + layers.up.bytes()) / units);
    PanelScratch panel_scratch;
    panel_scratch.Include(layers.gate);
    panel_scratch.Include(layers.up);
    panel_scratch.Take(workspace, threads);
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    for (std::size_t worker = 0; worker < threads; ++worker) {
      scratch.push_back(
          {workspace.Take<float>(height * unit), workspace.Take<float>(height * unit)});
    }

    const std::size_t groups = DivideUp(units, of_task);
    context.pool.ParallelShares(blocks.count * groups, [&](std::size_t task, int worker) {
      const Scratch& mine = scratch[static_cast<std::size_t>(worker)];
      const std::size_t row = blocks.First(task / groups);
      const std::size_t block_rows = blocks.Height(task / groups);
      const std::size_t first = task % groups * of_task;
      for (std::size_t i = first; i < std::min(first + of_task, units); ++i) {
        const std::size_t panel = i * unit_panels;
        const std::size_t end = std::min(panel + unit_panels, layers.gate.panels());
        RunPanels(layers.gate, layers.gate_bias, inputs[0], row, block_rows, panel, end, false,
                  mine.gate, unit, panel_scratch.Of(worker));
        RunPanels(layers.up, layers.up_bias, inputs[1], row, block_rows, panel, end, false, mine.up,
                  unit, panel_scratch.Of(worker));
        const std::size_t column = i * unit;
        const std::size_t width = std::min(unit, n - column);
        for (std::size_t r = 0; r < block_rows; ++r) {
          float* to = target.values != nullptr ? target.values + (row + r) * n + column
                                               : mine.gate + r * unit;
          layers.activation(mine.gate + r * unit, mine.up + r * unit, width, to);
          if (layers.factors != nullptr) {
            context.kernels.multiply(layers.factors + column, width, to);
          }
        }
        if (target.values == nullptr) {
          reader.prepare_input(mine.gate, unit, block_rows, {column, width, n},
                               target.prepared + row * target.row_bytes);
        }
      }
    });
  }
  if (target.values != nullptr) {
    return PrepareInput(context.pool, workspace, reader, target.values, n, rows, n);
  }
  return {target.prepared, n, target.row_bytes, rows, n};
}

}  // namespace slimformer::ops
