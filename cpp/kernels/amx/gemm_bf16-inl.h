// y = x W' for one panel of bfloat16 pairs, by tiles. Panels and rows are those of the avx512_bf16
// tier: 16 steps are two tiles of columns, side by side. To be included after the tier's
// vector-inl.h.
//
// A chunk is what one tile multiplies of k, 16 steps. Two tiles of rows by two of columns take four
// products of 16 cycles for four loads, which need half of that where they come from the
// first-level cache. k is cut into equal blocks of at most kBlockChunks, whose columns (24 KiB)
// stay there while all rows pass over them; y waits in the meantime, in the tiles' own order of
// sums: each chunk is summed from zero by the instruction itself and then added.
//
// The last chunk of k may be short: its columns and rows are copied, with zeros behind them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/few_rows-inl.h"
#include "kernels/amx/tiles-inl.h"
#include "kernels/avx512/vector-inl.h"
#include "kernels/avx512_bf16/bf16_panel-inl.h"
#include "kernels/tiles-inl.h"

namespace slimformer::kernels {
namespace {
namespace amx {

constexpr std::size_t kStepBytes = kPanelWidth * 2 * sizeof(std::uint16_t);
constexpr std::size_t kChunkBytes = kChunkSteps * kStepBytes;
constexpr std::size_t kBlockChunks = 12;
constexpr std::size_t kAheadBytes = std::size_t{16} << 10;

// Chunks of one of the equal blocks that `chunks` are cut into; the last may have fewer.
constexpr std::size_t BlockChunks(std::size_t chunks) noexcept {
  return DivideUp(chunks, DivideUp(chunks, kBlockChunks));
}

// The steps behind the last whole chunk, filled up with zeros.
class LastChunk {
 public:
  explicit LastChunk(std::size_t steps) noexcept
      : steps_(steps % kChunkSteps), mask_(static_cast<__mmask16>((1U << steps_) - 1U)) {}

  explicit operator bool() const noexcept { return steps_ > 0; }

  void CopyColumns(const std::byte* from) noexcept {
    __builtin_memset(columns_, 0, sizeof(columns_));
    __builtin_memcpy(columns_, from, steps_ * kStepBytes);
  }
  template <bool kTall>
  void Add(const std::byte* x, std::size_t stride, std::size_t rows) noexcept {
    for (std::size_t r = 0; r < rows; ++r) {
      _mm512_store_si512(rows_ + r * kTileBytes, _mm512_maskz_loadu_epi32(mask_, x + r * stride));
    }
    AddBf16<kTall>(rows_, kTileBytes, {{columns_, columns_ + kTileBytes}, kStepBytes});
  }

 private:
  std::size_t steps_;
  __mmask16 mask_;
  alignas(64) std::byte columns_[kChunkBytes];
  alignas(64) std::byte rows_[kMostRows * kTileBytes];
};

// y [rows, kPanelWidth] (+)= x [rows, x_stride bytes] times a block of `chunks` whole chunks, and
// the last one if there is one, for up to kMostRows rows, of the height that the tiles have. Part
// `share` of `shares` of what lies `ahead` bytes behind the block is fetched.
template <bool kTall>
inline void MultiplyTile(const std::byte* x, std::size_t x_stride, const std::byte* panel,
                         std::size_t ahead, std::size_t chunks, LastChunk* last, float* y,
                         std::size_t y_stride, std::size_t rows, bool accumulate, std::size_t share,
                         std::size_t shares) noexcept {
  if (accumulate) {
    LoadSums<kTall>(y, y_stride);
  } else {
    ZeroSums<kTall>();
  }
  constexpr std::size_t kLines = kChunkBytes / 64;
  const std::size_t first = kLines * share / shares;
  const std::size_t end = kLines * (share + 1) / shares;
  for (std::size_t i = 0; i < chunks; ++i) {
    for (std::size_t line = first; line < end; ++line) Vector::Prefetch(panel + ahead + line * 64);
    AddBf16<kTall>(x, x_stride, {{panel, panel + kTileBytes}, kStepBytes});
    panel += kChunkBytes;
    x += kTileBytes;
  }
  if (last != nullptr) last->Add<kTall>(x, x_stride, rows);
  StoreSums<kTall>(y, y_stride);
}

// y [rows, kPanelWidth] (+)= x [rows, x_stride bytes] panel over all of k, in tiles of one height.
// Where one tile is all there is, k is not cut and what comes next is fetched a microsecond ahead.
template <bool kTall>
inline void MultiplyRows(const std::byte* x, std::size_t x_stride, std::size_t rows,
                         std::size_t height, const std::byte* panel, std::size_t steps,
                         LastChunk& last, float* y, std::size_t y_stride,
                         bool accumulate) noexcept {
  const TileScope tiles(height);
  const std::size_t shares = rows / height;
  const std::size_t chunks = DivideUp(steps, kChunkSteps);
  const std::size_t block = shares == 1 ? chunks : BlockChunks(chunks);
  const std::size_t ahead = shares == 1 ? kAheadBytes : steps * kStepBytes;
  for (std::size_t first = 0; first < chunks; first += block) {
    const std::size_t end = first + block < chunks ? first + block : chunks;
    const bool is_short = end * kChunkSteps > steps;
    for (std::size_t share = 0; share < shares; ++share) {
      const std::size_t row = share * height;
      MultiplyTile<kTall>(x + row * x_stride + first * kTileBytes, x_stride,
                          panel + first * kChunkBytes, ahead, end - first - (is_short ? 1 : 0),
                          is_short ? &last : nullptr, y + row * y_stride, y_stride, height,
                          accumulate || first > 0, share, shares);
    }
  }
}

void MultiplyTiles(const std::byte* x, std::size_t rows, const std::byte* panel, std::size_t k,
                   float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const std::size_t steps = Steps<Bf16DotPanel>(k);
  const std::size_t x_stride = PreparedStride<Bf16DotPanel>(k) * sizeof(std::uint32_t);
  LastChunk last(steps);
  if (last) last.CopyColumns(panel + steps / kChunkSteps * kChunkBytes);
  const auto multiply = [&](const std::byte* from, std::size_t n_rows, float* to,
                            std::size_t to_stride) {
    ForTileRows(n_rows, [&](std::size_t first, std::size_t n, std::size_t height, auto tall) {
      MultiplyRows<decltype(tall)::value>(from + first * x_stride, x_stride, n, height, panel,
                                          steps, last, to + first * to_stride, to_stride,
                                          accumulate);
    });
  };
  if (outputs == kPanelWidth) {
    multiply(x, rows, y, y_stride);
    return;
  }
  ThroughCopy<4 * kMostRows>(y, y_stride, rows, outputs, accumulate,
                             [&](std::size_t first, std::size_t height, float* copy) {
                               multiply(x + first * x_stride, height, copy, kPanelWidth);
                             });
}

void MultiplyBf16(const void* x, std::size_t, std::size_t rows, const void* panel, std::size_t k,
                  float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const auto* step = static_cast<const std::byte*>(panel);
  if (rows > kFewRows) {
    MultiplyTiles(static_cast<const std::byte*>(x), rows, step, k, y, y_stride, outputs,
                  accumulate);
    return;
  }
  // One line is fetched before the loads and one behind them: side by side the fetches take the
  // buffers for misses from the loads, and a token takes a tenth longer.
  const auto next_step = [&](__m512i(&pairs)[2]) {
    Vector::Prefetch(step + kAheadBytes);
    pairs[0] = _mm512_loadu_si512(step);
    pairs[1] = _mm512_loadu_si512(step + kTileBytes);
    __asm__ volatile("" : "+v"(pairs[0]), "+v"(pairs[1]));
    Vector::Prefetch(step + kAheadBytes + kTileBytes);
    step += kStepBytes;
  };
  MultiplyFewRows(x, rows, k, y, y_stride, outputs, accumulate, next_step);
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
