// Cutting rows into register tiles, and the last panel's way to y: what the vector tiers' matrix
// products share. To be included after the tier's vector-inl.h.
#pragma once

#include <cstddef>

namespace slimformer::kernels {
namespace {

constexpr std::size_t kPanelWidth = 2 * Vector::kLanes;

constexpr std::size_t DivideUp(std::size_t n, std::size_t unit) noexcept {
  return (n + unit - 1) / unit;
}
constexpr std::size_t RoundUp(std::size_t n, std::size_t unit) noexcept {
  return DivideUp(n, unit) * unit;
}

// A height that is part of a type.
template <std::size_t kHeight>
struct Height {
  static constexpr std::size_t kRows = kHeight;
};

// run(Height<rows>{}), 1 <= rows <= kMost.
template <std::size_t kMost, class Run>
inline void WithHeight(std::size_t rows, const Run& run) noexcept {
  if (rows == kMost) {
    run(Height<kMost>{});
  } else if constexpr (kMost > 1) {
    WithHeight<kMost - 1>(rows, run);
  }
}

// run(Height, first_row) for tiles of nearly equal height, at most kMost, that cover the rows.
template <std::size_t kMost, class Run>
inline void ForTiles(std::size_t rows, const Run& run) noexcept {
  for (std::size_t first = 0; first < rows;) {
    const std::size_t left = rows - first;
    const std::size_t height = DivideUp(left, DivideUp(left, kMost));
    WithHeight<kMost>(height, [&](auto tile) { run(tile, first); });
    first += height;
  }
}

// The lines of y [kRows, kPanelWidth] that a tile will add to: by the time it has its sums they are
// there.
template <std::size_t kRows>
inline void FetchResults(const float* y, std::size_t y_stride) noexcept {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    const auto* row = reinterpret_cast<const char*>(y + r * y_stride);
    for (std::size_t at = 0; at < kPanelWidth * sizeof(float); at += 64) {
      Vector::PrefetchSoon(row + at);
    }
  }
}

// Lets run(first_row, height, copy) compute rows [height, kPanelWidth] in a copy of y, some at a
// time, of which `outputs` columns go to y.
template <std::size_t kCopyRows, class Run>
inline void ThroughCopy(float* y, std::size_t y_stride, std::size_t rows, std::size_t outputs,
                        bool accumulate, const Run& run) noexcept {
  float copy[kCopyRows * kPanelWidth];  // [kCopyRows, kPanelWidth]
  for (std::size_t first = 0; first < rows; first += kCopyRows) {
    const std::size_t height = rows - first < kCopyRows ? rows - first : kCopyRows;
    float* to = y + first * y_stride;
    for (std::size_t r = 0; r < height; ++r) {
      for (std::size_t c = 0; c < kPanelWidth; ++c) {
        copy[r * kPanelWidth + c] = accumulate && c < outputs ? to[r * y_stride + c] : 0.0F;
      }
    }
    run(first, height, copy);
    for (std::size_t r = 0; r < height; ++r) {
      for (std::size_t c = 0; c < outputs; ++c) to[r * y_stride + c] = copy[r * kPanelWidth + c];
    }
  }
}

inline std::size_t NoInputRowBytes(std::size_t) noexcept { return 0; }

}  // namespace
}  // namespace slimformer::kernels
