#include "model/kv_memory.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>

namespace slimformer::model {
namespace {

// Address space only: what nobody has written to takes no memory.
constexpr std::size_t kChunkBytes = std::size_t{16} << 20;
constexpr std::size_t kAlignment = 64;

// Where the next page goes. The chunk is not kept alive from here.
struct Place {
  std::mutex mutex;
  std::weak_ptr<AlignedBuffer<std::byte>> chunk;
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
      chunk_ = std::make_shared<Chunk>(std::max(rounded, kChunkBytes));
      place.chunk = chunk_;
      place.used = 0;
    }
    data_ = chunk_->data() + place.used;
    place.used += rounded;
  }
  std::memset(data_, 0, rounded);
}

}  // namespace slimformer::model
