// Panels without their zeros (SparseKernel in kernel_table.h): compressing them and expanding them,
// whatever they are made of. To be included after the tier's vector-inl.h.
//
// A Form says what a panel of the dense product looks like:
//   kItemBytes, IsZero     an item, and whether a product can do without it
//   kZero                  what each byte of an item is XORed with when it is stored, so that an
//                          item that is not there, expanded as 0, comes back as the dense panel's 0
//   kHeadBytes, kStepBytes the head of a group and each of its steps, a multiple of 64 items / 8
//   ShapeOf(k)             groups and steps
// An Expander, the tier's way to put values in their places, says
//   kLineBytes, Line       what one call makes: as much as the product loads at once, so that the
//                          compiler keeps it in the register in which it was made
//
// Where the next values lie depends on how many bits the masks before them have: a population count
// and an addition a line. Masks lie apart from values, so that this is all of the dependency.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {
namespace sparse {

// What is read is fetched into the L2 cache so far ahead: a microsecond at the rate of memory.
// Heads, masks and values are each fetched by their own kind, so that together they cover all of
// the panel that follows this one, or of the one behind it. A line is fetched once, and values once
// a step, which is a line where half of them are zero: fetches of what is under way already take
// the buffers for misses from others. Values are fetched into the first-level cache later on.
constexpr std::size_t kAheadBytes = std::size_t{16} << 10;
constexpr std::size_t kSoonBytes = std::size_t{1} << 10;

struct Shape {
  std::size_t groups;
  std::size_t group_steps;
  std::size_t last_steps;  // of the last group

  std::size_t steps() const noexcept { return (groups - 1) * group_steps + last_steps; }
};

template <class Form>
constexpr std::size_t kMaskBytes = Form::kStepBytes / Form::kItemBytes / 8;  // of a step

// Where the parts of a compressed panel begin, and what of it is still to be read.
template <class Form>
struct Cursor {
  const std::byte* head;
  const std::byte* masks;
  const std::byte* values;

  Cursor(const void* compressed, const Shape& shape) noexcept
      : head(static_cast<const std::byte*>(compressed)),
        masks(head + shape.groups * Form::kHeadBytes),
        values(masks + shape.steps() * kMaskBytes<Form>) {}
};

// Expands one step to `to` [kStepBytes].
template <class Form, class Expander>
[[gnu::always_inline]] inline void ExpandStep(Cursor<Form>& cursor, std::byte* to) noexcept {
  constexpr std::size_t kLineMask = Expander::kLineBytes / Form::kItemBytes / 8;
  if (reinterpret_cast<std::uintptr_t>(cursor.masks) % 64 < kMaskBytes<Form>) {
    Vector::Prefetch(cursor.masks + kAheadBytes);
  }
  Vector::Prefetch(cursor.values + kAheadBytes);
  Vector::PrefetchSoon(cursor.values + kSoonBytes);
#pragma GCC unroll 16
  for (std::size_t at = 0; at < Form::kStepBytes; at += Expander::kLineBytes) {
    cursor.values = Expander::template Line<Form::kZero>(cursor.masks, cursor.values, to + at);
    cursor.masks += kLineMask;
  }
}

// Calls run(head, items, steps) for each group of a panel.
template <class Form, class Byte, class Run>
inline void ForGroups(Byte* panel, const Shape& shape, const Run& run) noexcept {
  for (std::size_t group = 0; group < shape.groups; ++group) {
    const std::size_t steps = group + 1 < shape.groups ? shape.group_steps : shape.last_steps;
    run(panel, panel + Form::kHeadBytes, steps);
    panel += Form::kHeadBytes + steps * Form::kStepBytes;
  }
}

template <class Form>
std::size_t CompressedBytes(const void* panel, std::size_t k) noexcept {
  const Shape shape = Form::ShapeOf(k);
  std::size_t values = 0;
  ForGroups<Form>(static_cast<const std::byte*>(panel), shape,
                  [&](const std::byte*, const std::byte* items, std::size_t steps) {
                    for (std::size_t i = 0; i < steps * Form::kStepBytes; i += Form::kItemBytes) {
                      values += Form::IsZero(items + i) ? 0 : Form::kItemBytes;
                    }
                  });
  return RoundUp(shape.groups * Form::kHeadBytes + shape.steps() * kMaskBytes<Form> + values, 64);
}

template <class Form>
std::size_t StoredBytes(const void* compressed, std::size_t k, std::size_t available) noexcept {
  const Shape shape = Form::ShapeOf(k);
  const std::size_t masks = shape.groups * Form::kHeadBytes;
  const std::size_t values = masks + shape.steps() * kMaskBytes<Form>;
  if (values > available) return values;
  std::size_t items = 0;
  for (std::size_t i = masks; i < values; ++i) {
    const auto bits = static_cast<unsigned>(static_cast<const std::byte*>(compressed)[i]);
    items += static_cast<std::size_t>(__builtin_popcount(bits));
  }
  return RoundUp(values + items * Form::kItemBytes, 64);
}

template <class Form>
void Compress(const void* panel, std::size_t k, void* compressed) noexcept {
  const Shape shape = Form::ShapeOf(k);
  auto* head = static_cast<std::uint8_t*>(compressed);
  std::uint8_t* mask = head + shape.groups * Form::kHeadBytes;
  std::uint8_t* value = mask + shape.steps() * kMaskBytes<Form>;
  __builtin_memset(compressed, 0, CompressedBytes<Form>(panel, k));
  std::size_t item = 0;
  const auto put = [&](const std::byte* from) {
    mask[item / 8] = static_cast<std::uint8_t>(mask[item / 8] | 1U << item % 8);
    for (std::size_t b = 0; b < Form::kItemBytes; ++b) {
      *value++ = static_cast<std::uint8_t>(static_cast<std::uint8_t>(from[b]) ^ Form::kZero);
    }
  };
  const auto compress = [&](const std::byte* from, const std::byte* items, std::size_t steps) {
    __builtin_memcpy(head, from, Form::kHeadBytes);
    head += Form::kHeadBytes;
    const std::byte* end = items + steps * Form::kStepBytes;
    for (; items < end; items += Form::kItemBytes, ++item) {
      if (!Form::IsZero(items)) put(items);
    }
  };
  ForGroups<Form>(static_cast<const std::byte*>(panel), shape, compress);
}

template <class Form, class Expander>
void Expand(const void* compressed, std::size_t k, void* panel) noexcept {
  const Shape shape = Form::ShapeOf(k);
  Cursor<Form> cursor(compressed, shape);
  ForGroups<Form>(static_cast<std::byte*>(panel), shape,
                  [&](std::byte* to, std::byte* items, std::size_t steps) {
                    __builtin_memcpy(to, cursor.head, Form::kHeadBytes);
                    cursor.head += Form::kHeadBytes;
                    for (std::size_t i = 0; i < steps; ++i) {
                      ExpandStep<Form, Expander>(cursor, items + i * Form::kStepBytes);
                    }
                  });
}

// y [kRows, kPanelWidth] (+)= sums.
template <std::size_t kRows>
[[gnu::always_inline]] inline void StoreTile(const Vector::F (&sums)[kRows][2], float* y,
                                             std::size_t y_stride, bool accumulate) noexcept {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      float* to = y + r * y_stride + half * Vector::kLanes;
      Vector::F sum = sums[r][half];
      if (accumulate) sum = Vector::Add(Vector::Load(to), sum);
      Vector::Store(to, sum);
    }
  }
}

}  // namespace sparse
}  // namespace
}  // namespace slimformer::kernels
