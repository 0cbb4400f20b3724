// Owning memory for plain values, aligned to a cache line.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

namespace slimformer {

// Aligned to 64 bytes, or to 2 MiB with huge pages advised where `bytes` makes that worth while:
// packed weights are streamed, and a 4 KiB page costs a TLB miss every 64 cache lines.
// Throws std::bad_alloc. The memory is not initialised.
void* AllocateAligned(std::size_t bytes);
void FreeAligned(void* memory) noexcept;

// The system may take this memory as soon as it needs it, and what is in it is lost; if it does
// not, the next who writes to it pays no page fault.
void OfferToSystem(void* memory, std::size_t bytes) noexcept;

template <class T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  AlignedBuffer() noexcept = default;

  // Values are not initialised.
  explicit AlignedBuffer(std::size_t size) : size_(size) {
    if (size > std::numeric_limits<std::size_t>::max() / sizeof(T)) throw std::bad_alloc();
    if (size > 0) data_ = static_cast<T*>(AllocateAligned(size * sizeof(T)));
  }

  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  ~AlignedBuffer() { FreeAligned(data_); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t bytes() const noexcept { return size_ * sizeof(T); }

  T& operator[](std::size_t i) noexcept { return data_[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_[i]; }

  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace slimformer
