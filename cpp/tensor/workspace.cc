#include "tensor/workspace.h"

#include <algorithm>

namespace slimformer::tensor {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kSmallestChunk = std::size_t{1} << 20;

}  // namespace

std::size_t Workspace::bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& chunk : chunks_) total += chunk.bytes();
  return total;
}

void* Workspace::TakeBytes(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() - kAlignment) throw std::bad_alloc();
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  while (chunk_ < chunks_.size() && chunks_[chunk_].size() - used_ < rounded) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    chunks_.emplace_back(std::max(rounded, std::max(kSmallestChunk, this->bytes())));
  }
  std::byte* memory = chunks_[chunk_].data() + used_;
  used_ += rounded;
  return memory;
}

void Workspace::Release(std::size_t chunk, std::size_t used) noexcept {
  chunk_ = chunk;
  used_ = used;
}

}  // namespace slimformer::tensor
