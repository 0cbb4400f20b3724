// Tile registers (AMX): eight of 16 rows of 64 bytes, whose product takes as long as 16 dot
// products of vectors and is 16 times as large.
//
// The kernels of this tier use them alike: four hold sums, of two tiles of rows by two of columns,
// so that each tile that is loaded can be multiplied twice. A product's sums are 16 columns
// wide, and each of their rows is its own: what a row comes to does not depend on the others.
//
// The instructions are written in assembly: the intrinsics of GCC 12 do not say that loads read
// memory, so that what was written just before might not be there yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace slimformer::kernels {
namespace {
namespace amx {

constexpr std::size_t kTileHeight = 16;
constexpr std::size_t kTileBytes = 64;  // of a row
constexpr std::size_t kTileColumns = 16;
constexpr std::size_t kMostRows = 2 * kTileHeight;

enum TileName { kSum00, kSum01, kSum10, kSum11, kRows0, kRows1, kColumns0, kColumns1 };

// The shapes of all tiles while it lives. Afterwards they are what they were: other libraries
// remember what they have set (oneDNN sets the same shapes once a thread), and where nothing was
// set, a change of threads has no tiles to save.
class TileScope {
 public:
  // `rows` <= kMostRows of `depth_bytes` <= kTileBytes summed over, a multiple of 4.
  explicit TileScope(std::size_t rows, std::size_t depth_bytes = kTileBytes) noexcept {
    const std::size_t first = rows < kTileHeight ? rows : kTileHeight;
    SetRows({kSum00, kSum01, kRows0}, first, depth_bytes);
    if (rows > first) SetRows({kSum10, kSum11, kRows1}, rows - first, depth_bytes);
    Set(kColumns0, depth_bytes / 4, kTileBytes);
    Set(kColumns1, depth_bytes / 4, kTileBytes);
    __asm__ volatile("sttilecfg %0" : "=m"(before_));
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes_));
  }
  ~TileScope() {
    if (before_.palette == 0) {
      __asm__ volatile("tilerelease");
    } else {
      __asm__ volatile("ldtilecfg %0" : : "m"(before_));
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  // As LDTILECFG reads them.
  struct Shapes {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };
  struct Names {
    TileName sums[2];
    TileName rows;
  };

  void Set(TileName tile, std::size_t rows, std::size_t row_bytes) noexcept {
    shapes_.rows[tile] = static_cast<std::uint8_t>(rows);
    shapes_.row_bytes[tile] = static_cast<std::uint16_t>(row_bytes);
  }
  void SetRows(const Names& names, std::size_t rows, std::size_t depth_bytes) noexcept {
    for (const TileName sum : names.sums) Set(sum, rows, kTileBytes);
    Set(names.rows, rows, depth_bytes);
  }

  alignas(64) Shapes shapes_;
  alignas(64) Shapes before_;
};

// Rows of the tile's shape, `stride` bytes apart.
template <TileName kTile>
[[gnu::always_inline]] inline void LoadTile(const void* from, std::size_t stride) noexcept {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "i"(kTile)
                   : "memory");
}
template <TileName kTile>
[[gnu::always_inline]] inline void StoreTile(void* to, std::size_t stride) noexcept {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(to), "r"(stride), "i"(kTile)
                   : "memory");
}
template <TileName kTile>
[[gnu::always_inline]] inline void ZeroTile() noexcept {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// sum += rows columns, of bfloat16 pairs to float32.
template <TileName kSum, TileName kRows, TileName kColumns>
[[gnu::always_inline]] inline void MulAddBf16() noexcept {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                   :
                   : "i"(kSum), "i"(kRows), "i"(kColumns));
}
// The same of four int8 each, to int32.
template <TileName kSum, TileName kRows, TileName kColumns>
[[gnu::always_inline]] inline void MulAddInt8() noexcept {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kRows), "i"(kColumns));
}

// The sums of `kTall` (17 to 32) rows or of up to 16, 32 columns wide.
template <bool kTall>
[[gnu::always_inline]] inline void LoadSums(const float* from, std::size_t stride) noexcept {
  const std::size_t bytes = stride * sizeof(float);
  LoadTile<kSum00>(from, bytes);
  LoadTile<kSum01>(from + kTileColumns, bytes);
  if constexpr (kTall) {
    LoadTile<kSum10>(from + kTileHeight * stride, bytes);
    LoadTile<kSum11>(from + kTileHeight * stride + kTileColumns, bytes);
  }
}
template <bool kTall>
[[gnu::always_inline]] inline void StoreSums(float* to, std::size_t stride) noexcept {
  const std::size_t bytes = stride * sizeof(float);
  StoreTile<kSum00>(to, bytes);
  StoreTile<kSum01>(to + kTileColumns, bytes);
  if constexpr (kTall) {
    StoreTile<kSum10>(to + kTileHeight * stride, bytes);
    StoreTile<kSum11>(to + kTileHeight * stride + kTileColumns, bytes);
  }
}
template <bool kTall>
[[gnu::always_inline]] inline void ZeroSums() noexcept {
  ZeroTile<kSum00>();
  ZeroTile<kSum01>();
  if constexpr (kTall) {
    ZeroTile<kSum10>();
    ZeroTile<kSum11>();
  }
}

// Two tiles of columns.
struct Columns {
  const std::byte* tile[2];
  std::size_t stride;  // bytes from row to row
};

// sums += a tile or two of rows, `stride` bytes apart, times two of columns.
template <bool kTall>
[[gnu::always_inline]] inline void AddBf16(const std::byte* rows, std::size_t stride,
                                           const Columns& columns) noexcept {
  LoadTile<kColumns0>(columns.tile[0], columns.stride);
  LoadTile<kColumns1>(columns.tile[1], columns.stride);
  LoadTile<kRows0>(rows, stride);
  MulAddBf16<kSum00, kRows0, kColumns0>();
  MulAddBf16<kSum01, kRows0, kColumns1>();
  if constexpr (kTall) {
    LoadTile<kRows1>(rows + kTileHeight * stride, stride);
    MulAddBf16<kSum10, kRows1, kColumns0>();
    MulAddBf16<kSum11, kRows1, kColumns1>();
  }
}

// run(first_row, rows, height, Tall) for all rows: first tiles of kMostRows, then one of the rest.
template <class Run>
inline void ForTileRows(std::size_t rows, const Run& run) noexcept {
  const std::size_t whole = rows / kMostRows * kMostRows;
  if (whole > 0) run(std::size_t{0}, whole, kMostRows, std::true_type{});
  const std::size_t rest = rows - whole;
  if (rest > kTileHeight) {
    run(whole, rest, rest, std::true_type{});
  } else if (rest > 0) {
    run(whole, rest, rest, std::false_type{});
  }
}

}  // namespace amx
}  // namespace
}  // namespace slimformer::kernels
