#include "model/kv_memory.h"

#include <array>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <utility>

namespace slimformer::model {
namespace {

using Chunk = AlignedBuffer<std::byte>;

// Address space only: what nobody has written to takes no memory.
constexpr std::size_t kChunkBytes = std::size_t{16} << 20;
constexpr std::size_t kAlignment = 64;

// Free chunks that wait at most; the system takes what it needs of them.
constexpr std::size_t kMostFree = 8;

// Free chunks. Fresh huge pages cost the system milliseconds each, while all threads wait for the
// one that needs them: 2 to 5 % of a prompt.
class FreeChunks {
 public:
  std::shared_ptr<Chunk> Take() {
    {
      const std::lock_guard lock(mutex_);
      if (count_ > 0) return {chunks_[--count_].release(), &Return};
    }
    return {new Chunk(kChunkBytes), &Return};
  }

 private:
  static void Return(Chunk* chunk) noexcept;

  std::mutex mutex_;
  std::array<std::unique_ptr<Chunk>, kMostFree> chunks_;
  std::size_t count_ = 0;
};

// Never destroyed: sequences may be, after all that is static.
FreeChunks& Free() {
  static auto& chunks = *new FreeChunks;
  return chunks;
}

void FreeChunks::Return(Chunk* chunk) noexcept {
  std::unique_ptr<Chunk> owned(chunk);
  OfferToSystem(owned->data(), owned->bytes());
  FreeChunks& free = Free();
  const std::lock_guard lock(free.mutex_);
  if (free.count_ < kMostFree) free.chunks_[free.count_++] = std::move(owned);
}

// Where the next page goes. The chunk is not kept alive from here.
struct Place {
  std::mutex mutex;
  std::weak_ptr<Chunk> chunk;
  std::size_t used = 0;
};

}  // namespace

KvPage::KvPage(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() - kAlignment) throw std::bad_alloc();
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  static Place place;
  {
    const std::lock_guard lock(place.mutex);
    chunk_ = place.chunk.lock();
    if (chunk_ == nullptr || chunk_->size() - place.used < rounded) {
      chunk_ = rounded > kChunkBytes ? std::make_shared<Chunk>(rounded) : Free().Take();
      place.chunk = chunk_;
      place.used = 0;
    }
    data_ = chunk_->data() + place.used;
    place.used += rounded;
  }
  std::memset(data_, 0, rounded);
}

}  // namespace slimformer::model
