// y = x W' for one compressed panel of a few rows: the sparse form of the products in gemm-inl.h,
// which it is to be included after.
//
// The register tile and the order of every sum are those of the dense product: blocks of k whose
// sums start from zero and are added to y one after another. Low tiles run no blocks side by side:
// expanding a step takes longer than the multiply-adds of two rows wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/sparse-inl.h"

namespace slimformer::kernels {
namespace {
namespace sparse {

// bfloat16 panels: one group, all of it steps. Either zero is left out.
template <class OnePanel>
struct PanelForm {
  using Panel = OnePanel;
  static constexpr std::size_t kItemBytes = sizeof(typename Panel::Weight);
  static constexpr std::uint8_t kZero = 0;
  static constexpr std::size_t kHeadBytes = 0;
  static constexpr std::size_t kStepBytes = kStepWeights<Panel> * kItemBytes;

  static bool IsZero(const std::byte* item) noexcept {
    std::uint16_t bits = 0;
    __builtin_memcpy(&bits, item, sizeof(bits));
    return (bits & 0x7fffU) == 0;
  }
  static Shape ShapeOf(std::size_t k) noexcept { return {1, 0, Steps<Panel>(k)}; }
};

// y [kRows, kPanelWidth] (+)= the next `steps` steps.
template <class Form, class Expander, std::size_t kRows>
inline void Tile(Cursor<Form>& from, const typename Form::Panel::Input* x, std::size_t x_stride,
                 std::size_t steps, float* y, std::size_t y_stride, bool accumulate) noexcept {
  using Panel = typename Form::Panel;
  Cursor<Form> cursor = from;  // in registers
  Vector::F sums[kRows][2];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector::Zero();
  for (std::size_t i = 0; i < steps; ++i) {
    alignas(64) std::byte step[Form::kStepBytes];
    ExpandStep<Form, Expander>(cursor, step);
    typename Panel::W low;
    typename Panel::W high;
    Panel::Load(reinterpret_cast<const typename Panel::Weight*>(step), low, high);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const auto value = Panel::Broadcast(x + r * x_stride + i);
      sums[r][0] = Panel::MulAdd(value, low, sums[r][0]);
      sums[r][1] = Panel::MulAdd(value, high, sums[r][1]);
    }
  }
  StoreTile(sums, y, y_stride, accumulate);
  from = cursor;
}

template <class Form, class Expander>
void Multiply(const void* x, std::size_t x_stride, std::size_t rows, const void* compressed,
              std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
              bool accumulate) noexcept {
  using Panel = typename Form::Panel;
  const std::size_t steps = Steps<Panel>(k);
  const std::size_t block = BlockSteps(steps);
  if (Panel::kPerStep != 1) x_stride = PreparedStride<Panel>(k);
  const auto run = [&](float* to, std::size_t to_stride) {
    Cursor<Form> cursor(compressed, Form::ShapeOf(k));
    const auto* input = static_cast<const typename Panel::Input*>(x);
    WithHeight<kTileRows>(rows, [&](auto tile) {
      for (std::size_t done = 0; done < steps; done += block) {
        const std::size_t left = steps - done;
        Tile<Form, Expander, decltype(tile)::kRows>(cursor, input + done, x_stride,
                                                    left < block ? left : block, to, to_stride,
                                                    accumulate || done > 0);
      }
    });
  };
  if (outputs == kPanelWidth) {
    run(y, y_stride);
    return;
  }
  ThroughCopy<kTileRows>(y, y_stride, rows, outputs, accumulate,
                         [&](std::size_t, std::size_t, float* copy) { run(copy, kPanelWidth); });
}

// The sparse form of `dense`, whose panels Form describes.
template <class Form, class Expander>
constexpr SparseKernel MakeSparse(const GemmKernel& dense, float least_zeros) noexcept {
  return {.dense = dense,
          .least_zeros = least_zeros,
          .most_rows = kTileRows,
          .compressed_bytes = &CompressedBytes<Form>,
          .stored_bytes = &StoredBytes<Form>,
          .compress = &Compress<Form>,
          .expand = &Expand<Form, Expander>,
          .multiply = &Multiply<Form, Expander>};
}

}  // namespace sparse
}  // namespace
}  // namespace slimformer::kernels
