// y = x W' for one panel of bfloat16 pairs, by tiles. To be included after the avx512_bf16 tier's
// panels, which it reads as they are: 16 of their steps are two tiles of columns, side by side.
//
// A chunk is what one tile multiplies of k, 16 steps. Two tiles of rows by two of columns take four
// products of 16 cycles for four loads, which need half of that where they come from the first-level
// cache. k is cut into equal blocks of at most kBlockChunks, whose columns (24 KiB) stay there while
// all rows pass over them; y waits in the meantime, in the tiles' own order of sums: each chunk is
// summed from zero by the instruction itself and then added.
//
// The last chunk of k may be short: its columns and rows are copied, with zeros behind them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/few_rows-inl.h"
#include "kernels/amx/tiles-inl.h"
#include "kernels/avx512/vector-inl.h"
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
    AddProduct<kTall, Bf16>(rows_, kTileBytes, {{columns_, columns_ + kTileBytes}, kStepBytes});
  }

 private:
  std::size_t steps_;
  __mmask16 mask_;
  alignas(64) std::byte columns_[kChunkBytes];
  alignas(64) std::byte rows_[kMostRows * kTileBytes];
};

// What one call of Multiply works on.
struct Bf16Product {
  const std::byte* x;  // [rows, x_stride]
  std::size_t x_stride;
  const std::byte* panel;   // [steps][kStepBytes]
  std::size_t ahead;        // bytes to what is fetched
  float* y;                 // [rows, kPanelWidth]
  std::size_t y_stride;
};

// Fetches lines [first, last) of those ahead.
inline void FetchAhead(const Bf16Product& p, std::size_t first, std::size_t last) noexcept {
  const std::byte* next = p.panel + p.ahead;
  for (std::size_t line = first; line < last; ++line) Vector::Prefetch(next + line * 64);
}

// y (+)= a block of chunks times up to kMostRows rows, of the height that the tiles have. Part
// `share` of `shares` of what is ahead of the block is fetched.
template <bool kTall>
inline void MultiplyTile(const Bf16Product& p, std::size_t rows, std::size_t chunks,
                         LastChunk* last, bool accumulate, std::size_t share,
                         std::size_t shares) noexcept {
  if (accumulate) {
    LoadSums<kTall>(p.y, p.y_stride);
  } else {
    ZeroSums<kTall>();
  }
  constexpr std::size_t kLines = kChunkBytes / 64;
  Columns columns{{p.panel, p.panel + kTileBytes}, kStepBytes};
  const std::byte* x = p.x;
  const float* next_y = p.y + rows * p.y_stride;
  for (std::size_t i = 0; i < chunks; ++i) {
    for (std::size_t r = 0; r < 4; ++r, next_y += p.y_stride) {
      Vector::Prefetch(next_y);
      Vector::Prefetch(next_y + kTileColumns);
    }
    const std::size_t first = i * kLines;
    FetchAhead(p, first + kLines * share / shares, first + kLines * (share + 1) / shares);
    AddProduct<kTall, Bf16>(x, p.x_stride, columns);
    columns.Advance(kChunkBytes);
    x += kTileBytes;
  }
  if (last != nullptr) last->Add<kTall>(x, p.x_stride, rows);
  StoreSums<kTall>(p.y, p.y_stride);
}

// y [rows, kPanelWidth] (+)= x panel over all of k, in tiles of one height.
template <bool kTall>
inline void MultiplyRows(Bf16Product p, std::size_t rows, std::size_t height, std::size_t steps,
                         LastChunk& last, bool accumulate) noexcept {
  const TileScope tiles(height);
  const std::size_t shares = rows / height;
  const std::size_t chunks = DivideUp(steps, kChunkSteps);
  const std::size_t block = shares == 1 ? chunks : BlockChunks(chunks);
  for (std::size_t first = 0; first < chunks; first += block) {
    const std::size_t end = first + block < chunks ? first + block : chunks;
    const bool is_short = end * kChunkSteps > steps;
    for (std::size_t share = 0; share < shares; ++share) {
      Bf16Product at = p;
      at.x += share * height * p.x_stride;
      at.y += share * height * p.y_stride;
      MultiplyTile<kTall>(at, height, end - first - (is_short ? 1 : 0), is_short ? &last : nullptr,
                          accumulate, share, shares);
    }
    accumulate = true;
    p.x += (end - first) * kTileBytes;
    p.panel += (end - first) * kChunkBytes;
  }
}

void MultiplyBf16(const void* x, std::size_t, std::size_t rows, const void* panel, std::size_t k,
                  float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  const std::size_t steps = Steps<Bf16DotPanel>(k);
  if (rows <= kFewRows) {
    WithFewRows(rows, y, y_stride, outputs, accumulate,
                [&](auto tile, float* to, std::size_t to_stride) {
                  const auto* step = static_cast<const std::byte*>(panel);
                  MultiplyFew<decltype(tile)::kRows>(
                      static_cast<const std::uint32_t*>(x), steps, to, to_stride, accumulate, [&] {
                        Vector::Prefetch(step + kAheadBytes);
                        Vector::Prefetch(step + kAheadBytes + kTileBytes);
                        step += kStepBytes;
                        return step - kStepBytes;
                      });
                });
    return;
  }
  Bf16Product p;
  p.x = static_cast<const std::byte*>(x);
  p.x_stride = steps * sizeof(std::uint32_t);
  p.panel = static_cast<const std::byte*>(panel);
  p.ahead = rows <= kMostRows ? kAheadBytes : steps * kStepBytes;
  LastChunk last(steps);
  if (last) last.CopyColumns(p.panel + steps / kChunkSteps * kChunkBytes);
  const auto multiply = [&](const Bf16Product& all, std::size_t n_rows) {
    ForTileRows(n_rows, [&](std::size_t first, std::size_t n, std::size_t height, auto tall) {
      Bf16Product at = all;
      at.x += first * all.x_stride;
      at.y += first * all.y_stride;
      MultiplyRows<decltype(tall)::value>(at, n, height, steps, last, accumulate);
    });
  };
  if (outputs == kPanelWidth) {
    p.y = y;
    p.y_stride = y_stride;
    multiply(p, rows);
    return;
  }
  ThroughCopy<4 * kMostRows>(y, y_stride, rows, outputs, accumulate,
                             [&](std::size_t first, std::size_t height, float* copy) {
                               Bf16Product at = p;
                               at.x += first * p.x_stride;
                               at.y = copy;
                               at.y_stride = kPanelWidth;
                               multiply(at, height);
                             });
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
