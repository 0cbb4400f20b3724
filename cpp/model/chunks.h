// Cutting a long ragged batch into pieces that fit in little memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace slimformer::model {

// Rows that pass through the layers together. Enough that reading the weights is little work
// next to using them (at 512 rows, some 2 % of a float32 pass on two cores); few enough that
// activations stay in a few megabytes.
inline constexpr std::size_t kChunkRows = 512;

// A run of rows of one sequence.
struct ChunkPart {
  std::size_t sequence;
  std::size_t offset;  // rows of the sequence before it
  std::size_t rows;
};

struct Chunk {
  std::size_t first_row;  // of the whole batch
  std::size_t rows;
  std::vector<ChunkPart> parts;
};

// Sequences of these lengths, one after another, in chunks of kChunkRows. Where sequences stay
// `whole`, chunks are shorter, or as long as the one sequence in them.
inline std::vector<Chunk> CutIntoChunks(std::span<const std::size_t> lengths, bool whole) {
  std::vector<Chunk> chunks;
  std::size_t row = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    for (std::size_t offset = 0; offset < lengths[s];) {
      const std::size_t wanted = whole ? lengths[s] : 1;
      if (chunks.empty() || chunks.back().rows + wanted > kChunkRows) {
        chunks.push_back({row, 0, {}});
      }
      Chunk& chunk = chunks.back();
      const std::size_t rows =
          whole ? wanted : std::min(kChunkRows - chunk.rows, lengths[s] - offset);
      chunk.parts.push_back({s, offset, rows});
      chunk.rows += rows;
      offset += rows;
      row += rows;
    }
  }
  return chunks;
}

}  // namespace slimformer::model
