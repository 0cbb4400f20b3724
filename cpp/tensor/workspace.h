// Scratch memory that grows to what a forward pass needs and is then reused by the next.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "base/aligned_buffer.h"

namespace slimformer::tensor {

// Hands out memory as a stack does. Open a Frame, Take what is needed; all that was taken goes
// back when the Frame closes. Memory that was handed out never moves. Not for use by several
// threads at once.
class Workspace {
 public:
  class Frame {
   public:
    explicit Frame(Workspace& workspace) noexcept
        : workspace_(workspace), chunk_(workspace.chunk_), used_(workspace.used_) {}
    ~Frame() { workspace_.Release(chunk_, used_); }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Workspace& workspace_;
    std::size_t chunk_;
    std::size_t used_;
  };

  // `size` values, aligned to 64 bytes, not initialised. Throws std::bad_alloc.
  template <class T>
  T* Take(std::size_t size) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
    if (size > std::numeric_limits<std::size_t>::max() / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(TakeBytes(size * sizeof(T)));
  }

  std::size_t bytes() const noexcept;

 private:
  void* TakeBytes(std::size_t bytes);
  void Release(std::size_t chunk, std::size_t used) noexcept;

  std::vector<AlignedBuffer<std::byte>> chunks_;
  std::size_t chunk_ = 0;  // the chunk that memory is taken from
  std::size_t used_ = 0;   // bytes taken from it
};

}  // namespace slimformer::tensor
