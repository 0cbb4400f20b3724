#include "ops/panels.h"

#include "base/cpu_cache.h"
#include "kernels/kernel_table.h"

namespace slimformer::ops {
namespace {

// A block of rows takes at most 3/8 of the second-level cache, and has a row for every 2 KiB of
// that at most: 384 KiB and 192 rows of 1 MiB. With 2 MiB, a prefill of 512 took 3 to 14 % longer
// in blocks half as high, in float32 and bfloat16. Other caches were not measured.
constexpr std::size_t kLeastCacheBytes = std::size_t{1} << 20;
constexpr std::size_t kMostCacheBytes = std::size_t{2} << 20;
constexpr std::size_t kBytesOfRow = std::size_t{2} << 10;

std::size_t RowBlockBytes() {
  return std::clamp(SecondLevelCacheBytes(), kLeastCacheBytes, kMostCacheBytes) / 8 * 3;
}

// A task is worth handing out from half a microsecond of arithmetic or of reading weights on:
// taking it costs a twentieth of that.
constexpr std::size_t kTaskFlops = std::size_t{128} << 10;
constexpr std::size_t kTaskBytes = std::size_t{16} << 10;

void AddBias(const float* bias, std::size_t outputs, std::size_t rows, float* y,
             std::size_t y_stride) {
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < outputs; ++c) y[r * y_stride + c] += bias[c];
  }
}

}  // namespace

RowBlocks CutRows(std::size_t rows, std::size_t cols, const kernels::GemmKernel& kernel) {
  const std::size_t bytes = RowBlockBytes();
  const std::size_t fitting = bytes / InputRowBytes(kernel, cols);
  const std::size_t most = std::clamp(fitting, 4 * kernel.tile_rows, bytes / kBytesOfRow);
  const std::size_t height = RoundUp(DivideUp(rows, DivideUp(rows, most)), kernel.tile_rows);
  return {rows, height, DivideUp(rows, height)};
}

std::size_t UnitsOfTask(std::size_t flops, std::size_t bytes) {
  return std::min(DivideUp(kTaskFlops, flops), DivideUp(kTaskBytes, bytes));
}

void RunPanels(const tensor::PackedMatrix& matrix, const float* bias, const LinearInput& x,
               std::size_t first_row, std::size_t height, std::size_t first, std::size_t last,
               bool accumulate, float* y, std::size_t y_stride, std::byte* scratch) {
  const std::size_t width = matrix.kernel().panel_width;
  for (std::size_t panel = first; panel < last; ++panel) {
    matrix.MultiplyPanel(panel, x.Row(first_row), x.stride, height, y, y_stride, accumulate,
                         scratch);
    if (bias != nullptr) {
      AddBias(bias + panel * width, matrix.PanelRows(panel), height, y, y_stride);
    }
    y += width;
  }
}

}  // namespace slimformer::ops
