// y = x W' for one compressed panel of int8 weights and a few rows: the sparse form of the products
// in gemm-whole-inl.h, which it is to be included after. Tiles, blocks of groups and the order of
// every sum are those of the dense product.
//
// Groups are not rotated: a rotated group has no zeros left.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/sparse-inl.h"

namespace slimformer::kernels {
namespace {
namespace sparse {

// Groups of scales and bytes. A byte of 0 belongs to an output that is not there: q is never -128.
template <class OneWeights>
struct WholeForm {
  using Weights = OneWeights;
  using Dot = typename Weights::Dot;
  static_assert(!Dot::kRotated && Weights::kParts == 1);
  static constexpr std::size_t kItemBytes = 1;
  static constexpr std::uint8_t kZero = Dot::Encode(0);
  static constexpr std::size_t kHeadBytes = Weights::kScaleBytes;
  static constexpr std::size_t kStepBytes = Weights::kStepBytes;

  static bool IsZero(const std::byte* item) noexcept {
    const auto byte = static_cast<std::uint8_t>(*item);
    return byte == kZero || byte == 0;
  }
  static Shape ShapeOf(std::size_t k) noexcept {
    return {whole::Groups<Dot>(k), whole::kGroupSteps<Weights>, whole::LastSteps<Weights>(k)};
  }
};

// Adds the next group, of `steps` steps, times the same group of every row to sums.
template <class Form, class Expander, std::size_t kRows>
[[gnu::always_inline]] inline void AddGroup(Cursor<Form>& cursor,
                                            const whole::Rows<typename Form::Dot>& x,
                                            std::size_t steps,
                                            Vector::F (&sums)[kRows][2]) noexcept {
  using Weights = typename Form::Weights;
  using Dot = typename Form::Dot;
  using I = typename Dot::I;
  for (std::size_t line = 0; line < Form::kHeadBytes; line += 64) {
    Vector::Prefetch(cursor.head + line + kAheadBytes);
  }
  I dots[kRows][2];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    dots[r][0] = dots[r][1] = Weights::Start(x.FactsOf(r));
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < steps; ++i) {
    alignas(64) std::byte step[Form::kStepBytes];
    ExpandStep<Form, Expander>(cursor, step);
    I low;
    I high;
    Weights::Load(step, low, high);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const I values = x.Step(r, i);
      dots[r][0] = Dot::MulAdd(values, low, dots[r][0]);
      dots[r][1] = Dot::MulAdd(values, high, dots[r][1]);
    }
  }
  Vector::F scale[2];
  Weights::template LoadScales<0>(cursor.head, scale);
  cursor.head += Form::kHeadBytes;
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    const Vector::F x_scale = Vector::Set(x.FactsOf(r).scale);
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      const Vector::F scaled = Vector::Mul(Vector::ToFloat(dots[r][half]), scale[half]);
      sums[r][half] = Vector::MulAdd(scaled, x_scale, sums[r][half]);
    }
  }
}

// y [kRows, kPanelWidth] (+)= the next groups, the last of them `last_steps` long.
template <class Form, class Expander, std::size_t kRows>
inline void WholeTile(Cursor<Form>& from, const whole::Rows<typename Form::Dot>& x,
                      std::size_t groups, std::size_t last_steps, float* y, std::size_t y_stride,
                      bool accumulate) noexcept {
  constexpr std::size_t kSteps = whole::kGroupSteps<typename Form::Weights>;
  Cursor<Form> cursor = from;  // in registers
  Vector::F sums[kRows][2];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector::Zero();
  const std::size_t full = last_steps == kSteps ? groups : groups - 1;
  for (std::size_t group = 0; group < full; ++group) {
    AddGroup<Form, Expander, kRows>(cursor, x.From(group), kSteps, sums);
  }
  if (full < groups) AddGroup<Form, Expander, kRows>(cursor, x.From(full), last_steps, sums);
  StoreTile(sums, y, y_stride, accumulate);
  from = cursor;
}

template <class Form, class Expander>
void MultiplyWhole(const void* x, std::size_t, std::size_t rows, const void* compressed,
                   std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                   bool accumulate) noexcept {
  const Shape shape = Form::ShapeOf(k);
  const std::size_t block = whole::BlockGroups<typename Form::Weights>(shape.groups);
  const auto run = [&](float* to, std::size_t to_stride) {
    Cursor<Form> cursor(compressed, shape);
    const whole::Rows<typename Form::Dot> input(x, k);
    WithHeight<whole::kTileRows>(rows, [&](auto tile) {
      for (std::size_t done = 0; done < shape.groups; done += block) {
        const bool is_last = shape.groups - done <= block;
        WholeTile<Form, Expander, decltype(tile)::kRows>(
            cursor, input.From(done), is_last ? shape.groups - done : block,
            is_last ? shape.last_steps : shape.group_steps, to, to_stride, accumulate || done > 0);
      }
    });
  };
  if (outputs == kPanelWidth) {
    run(y, y_stride);
    return;
  }
  ThroughCopy<whole::kTileRows>(
      y, y_stride, rows, outputs, accumulate,
      [&](std::size_t, std::size_t, float* copy) { run(copy, kPanelWidth); });
}

// The sparse form of int8 products by Dot.
template <class Dot, class Expander>
constexpr SparseKernel MakeSparseInt8(float least_zeros) noexcept {
  using Form = WholeForm<Int8Weights<Dot>>;
  return {.dense = whole::MakeGemm<Int8Weights<Dot>>(),
          .least_zeros = least_zeros,
          .most_rows = whole::kTileRows,
          .compressed_bytes = &CompressedBytes<Form>,
          .stored_bytes = &StoredBytes<Form>,
          .compress = &Compress<Form>,
          .expand = &Expand<Form, Expander>,
          .multiply = &MultiplyWhole<Form, Expander>};
}

}  // namespace sparse
}  // namespace
}  // namespace slimformer::kernels
