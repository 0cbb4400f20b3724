// Attention over pages of bfloat16 by tiles, with the pages, the softmax and the order of work of
// attend-inl.h. To be included after the tier's vector-inl.h.
//
// Both products are those of gemm_bf16-inl.h: 32 queries by 32 keys, then 32 rows of weights by 32
// columns of values. A page holds keys and values as tiles of columns want them: 16 keys of 32
// dimensions lie together, and 32 positions of 16 columns are a tile whose rows are as far apart as
// the values are wide. Products of a page take a thousand cycles for 32 rows, and its softmax three
// times that.
//
// The output is rescaled where a row's maximum has changed, and is then what the sums start from.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/tiles-inl.h"
#include "kernels/attend-inl.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {
namespace amx {

constexpr std::size_t kChunkDepth = 32;  // bfloat16 in a row of a tile
constexpr std::size_t kWide = 2 * kTileColumns;
constexpr std::size_t kPair = 2 * sizeof(std::uint16_t);
constexpr std::size_t kTile = kTileHeight * kTileBytes;

// A tile of columns of which the rows from `height` on are not there: they are zeros.
inline void CopyTile(const std::byte* from, std::size_t stride, std::size_t height,
                     std::size_t row_bytes, std::byte* to) noexcept {
  __builtin_memset(to, 0, kTile);
  for (std::size_t r = 0; r < height; ++r) {
    __builtin_memcpy(to + r * kTileBytes, from + r * stride, row_bytes);
  }
}

// Fetches as many lines as two tiles of columns have.
inline void FetchTiles(const std::byte* ahead) noexcept {
  for (std::size_t at = 0; at < 2 * kTile; at += kLine) Vector::Prefetch(ahead + at);
}

template <class Page>
struct Tiles {
  static constexpr std::size_t kMostRows = amx::kMostRows;

  static std::size_t AttendSome(const Attention<Page>& a, std::size_t rows) noexcept {
    if (rows > kMostRows) rows = kMostRows;
    const Seen seen = SeenBy(a, rows);
    if (seen.first >= seen.last) return rows;
    if (rows > kTileHeight) {
      AttendRows<true>(a, rows, seen);
    } else {
      AttendRows<false>(a, rows, seen);
    }
    return rows;
  }

 private:
  template <bool kTall>
  static void AttendRows(const Attention<Page>& a, std::size_t rows, const Seen& seen) noexcept {
    constexpr auto kAtOnce = static_cast<std::int32_t>(kWide);
    const std::int32_t first = seen.first / kAtOnce * kAtOnce;
    const std::int32_t last = (seen.last + kAtOnce - 1) / kAtOnce * kAtOnce;
    const std::size_t depth = RoundUp(a.head_dim, kChunkDepth);
    CopyQueries(a, rows, depth);
    const TileScope tiles(rows);
    for (std::int32_t at = first; at < last; at += kAtOnce) {
      Scores<kTall>(a, depth, static_cast<std::size_t>(at));
    }
    for (std::size_t r = 0; r < rows; ++r) {
      const float factor = Softmax<Page>(
          a.scores + r * kPagePositions, a.key_scales, a.value_scales, a.soft_cap, first, last,
          a.begin[r], a.end[r], a.max + r, a.sum + r, a.weights + r * kPagePositions);
      if (factor != 1.0F) Scale(factor, a.value_dim, a.out + r * a.out_stride);
    }
    const auto position = static_cast<std::size_t>(first);
    const std::size_t chunks = static_cast<std::size_t>(last - first) / kChunkDepth;
    std::size_t column = 0;
    for (; column + kWide <= a.value_dim; column += kWide) {
      AddValues<kTall>(a, position, chunks, column);
    }
    if (column < a.value_dim) AddLastValues<kTall>(a, rows, position, chunks, column);
  }

  static void Scale(float factor, std::size_t n, float* x) noexcept {
    for (std::size_t i = 0; i < n; ++i) x[i] *= factor;
  }

  // The scores of kWide keys from `position` on.
  template <bool kTall>
  static void Scores(const Attention<Page>& a, std::size_t depth, std::size_t position) noexcept {
    const std::size_t steps = KeySteps(a);
    const std::size_t group_bytes = steps * kTileBytes;
    const auto* keys = reinterpret_cast<const std::byte*>(a.keys) + position * steps * kPair;
    const auto* queries = reinterpret_cast<const std::byte*>(a.multipliers);
    const std::size_t stride = depth * sizeof(std::uint16_t);
    const auto* ahead = reinterpret_cast<const std::byte*>(a.values) + position * steps * kPair;
    ZeroSums<kTall>();
    for (std::size_t step = 0; step < steps; step += kTileHeight) {
      if constexpr (!kTall) FetchTiles(ahead + 2 * step * kTileBytes);
      const std::byte* from = keys + step * kTileBytes;
      if (step + kTileHeight <= steps) {
        AddBf16<kTall>(queries, stride, {{from, from + group_bytes}, kTileBytes});
      } else {
        alignas(64) std::byte copy[2][kTile];
        CopyTile(from, kTileBytes, steps - step, kTileBytes, copy[0]);
        CopyTile(from + group_bytes, kTileBytes, steps - step, kTileBytes, copy[1]);
        AddBf16<kTall>(queries, stride, {{copy[0], copy[1]}, kTileBytes});
      }
      queries += kTileBytes;
    }
    StoreSums<kTall>(a.scores + position, kPagePositions);
  }

  // out += weights values, of kWide columns.
  template <bool kTall>
  static void AddValues(const Attention<Page>& a, std::size_t position, std::size_t chunks,
                        std::size_t column) noexcept {
    const std::size_t stride = a.value_dim * kPair;
    const auto* weights = reinterpret_cast<const std::byte*>(a.weights + position);
    const auto* values = reinterpret_cast<const std::byte*>(a.values) + position / 2 * stride;
    const std::byte* from = values + column * kPair;
    LoadSums<kTall>(a.out + column, a.out_stride);
    for (std::size_t i = 0; i < chunks; ++i) {
      if constexpr (!kTall) FetchTiles(a.next_keys + (column / kWide * chunks + i) * 2 * kTile);
      AddBf16<kTall>(weights + i * kTileBytes, kPagePositions * sizeof(std::uint16_t),
                     {{from, from + kTileBytes}, stride});
      from += kTileHeight * stride;
    }
    StoreSums<kTall>(a.out + column, a.out_stride);
  }

  // The same for the last columns, fewer than kWide, through copies.
  template <bool kTall>
  static void AddLastValues(const Attention<Page>& a, std::size_t rows, std::size_t position,
                            std::size_t chunks, std::size_t column) noexcept {
    const std::size_t stride = a.value_dim * kPair;
    const std::size_t columns = a.value_dim - column;
    const std::size_t low = columns < kTileColumns ? columns : kTileColumns;
    const auto* weights = reinterpret_cast<const std::byte*>(a.weights + position);
    const auto* from =
        reinterpret_cast<const std::byte*>(a.values) + position / 2 * stride + column * kPair;
    alignas(64) float out[kMostRows * kWide] = {};
    for (std::size_t r = 0; r < rows; ++r) {
      __builtin_memcpy(out + r * kWide, a.out + r * a.out_stride + column, columns * sizeof(float));
    }
    LoadSums<kTall>(out, kWide);
    for (std::size_t i = 0; i < chunks; ++i) {
      alignas(64) std::byte copy[2][kTile];
      CopyTile(from, stride, kTileHeight, low * kPair, copy[0]);
      CopyTile(from + kTileBytes, stride, kTileHeight, (columns - low) * kPair, copy[1]);
      AddBf16<kTall>(weights + i * kTileBytes, kPagePositions * sizeof(std::uint16_t),
                     {{copy[0], copy[1]}, kTileBytes});
      from += kTileHeight * stride;
    }
    StoreSums<kTall>(out, kWide);
    for (std::size_t r = 0; r < rows; ++r) {
      __builtin_memcpy(a.out + r * a.out_stride + column, out + r * kWide, columns * sizeof(float));
    }
  }
};

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
