// Activations of products of whole numbers. A row is the numbers of all its groups and then, for
// each group, what else a product has to know, filled up to whole cache lines: a group of int8 is
// one, and a tile of 16 such rows loads in 8 cycles. With lines that are split it took 45.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {
namespace whole {

template <class Dot>
constexpr std::size_t Groups(std::size_t k) noexcept {
  return DivideUp(k, Dot::kGroup);
}

template <class Dot>
constexpr std::size_t kNumbersBytes = Dot::kGroup * sizeof(typename Dot::Number);

// Where in a row the facts of its groups begin.
template <class Dot>
constexpr std::size_t FactsAt(std::size_t k) noexcept {
  return Groups<Dot>(k) * kNumbersBytes<Dot>;
}

template <class Dot>
std::size_t InputRowBytes(std::size_t k) noexcept {
  return RoundUp(FactsAt<Dot>(k) + Groups<Dot>(k) * sizeof(typename Dot::Facts), 64);
}

// Rows from some row and some group on.
template <class Dot>
struct Rows {
  using Facts = typename Dot::Facts;

  Rows(const void* x, std::size_t k) noexcept
      : numbers(static_cast<const std::byte*>(x)),
        facts(numbers + FactsAt<Dot>(k)),
        stride(InputRowBytes<Dot>(k)) {}

  Rows Below(std::size_t rows) const noexcept {
    Rows below = *this;
    below.numbers += rows * stride;
    below.facts += rows * stride;
    return below;
  }
  Rows From(std::size_t groups) const noexcept {
    Rows from = *this;
    from.numbers += groups * kNumbersBytes<Dot>;
    from.facts += groups * sizeof(Facts);
    return from;
  }

  // A step of the first group of a row, in every lane.
  typename Dot::I Step(std::size_t row, std::size_t step) const noexcept {
    std::int32_t of_step;
    __builtin_memcpy(&of_step, numbers + row * stride + step * sizeof(of_step), sizeof(of_step));
    return Vector::SetInt(of_step);
  }
  const Facts& FactsOf(std::size_t row) const noexcept {
    return *reinterpret_cast<const Facts*>(facts + row * stride);
  }

  const std::byte* numbers;
  const std::byte* facts;
  std::size_t stride;  // bytes
};

template <class Dot>
void PrepareInput(const float* x, std::size_t stride, std::size_t rows, const InputColumns& columns,
                  void* prepared) noexcept {
  constexpr std::size_t kGroup = Dot::kGroup;
  const std::size_t row_bytes = InputRowBytes<Dot>(columns.of);
  const std::size_t group = columns.first / kGroup;
  auto* row = static_cast<std::byte*>(prepared);
  for (std::size_t r = 0; r < rows; ++r, row += row_bytes) {
    auto* numbers = reinterpret_cast<typename Dot::Number*>(row) + group * kGroup;
    auto* facts = reinterpret_cast<typename Dot::Facts*>(row + FactsAt<Dot>(columns.of)) + group;
    const float* from = x + r * stride;
    std::size_t i = 0;
    // Inlined, so that several groups are under way at once: each is a chain of some 120 cycles.
    for (; i + kGroup <= columns.count; i += kGroup) {
      Dot::Prepare(from + i, kGroup, numbers + i, *facts++);
    }
    if (i < columns.count) Dot::Prepare(from + i, columns.count - i, numbers + i, *facts);
  }
}

}  // namespace whole
}  // namespace
}  // namespace slimformer::kernels
