#include "tensor/weight_memory.h"

#include <limits>
#include <mutex>
#include <new>

#include "base/aligned_buffer.h"

namespace slimformer::tensor {
namespace {

// Address space only: pages of a chunk that nobody has written to take no memory.
constexpr std::size_t kChunkBytes = std::size_t{64} << 20;
constexpr std::size_t kOwnChunkFrom = kChunkBytes / 4;
constexpr std::size_t kAlignment = 64;

using Chunk = AlignedBuffer<std::byte>;

std::shared_ptr<std::byte> PartOf(const std::shared_ptr<Chunk>& chunk, std::size_t offset) {
  return {chunk, chunk->data() + offset};
}

// Where the next matrix goes. The chunk is not kept alive from here.
struct Place {
  std::mutex mutex;
  std::weak_ptr<Chunk> chunk;
  std::size_t used = 0;
};

}  // namespace

std::shared_ptr<std::byte> AllocateWeights(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() - kAlignment) throw std::bad_alloc();
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded >= kOwnChunkFrom) return PartOf(std::make_shared<Chunk>(rounded), 0);

  static Place place;
  const std::lock_guard lock(place.mutex);
  std::shared_ptr<Chunk> chunk = place.chunk.lock();
  if (chunk == nullptr || chunk->size() - place.used < rounded) {
    chunk = std::make_shared<Chunk>(kChunkBytes);
    place.chunk = chunk;
    place.used = 0;
  }
  const std::size_t offset = place.used;
  place.used += rounded;
  return PartOf(chunk, offset);
}

}  // namespace slimformer::tensor
