#include "base/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>

namespace slimformer {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Rounding up to whole huge pages may then waste an eighth at most.
constexpr std::size_t kHugePageFrom = 8 * kHugePage;

}  // namespace

void* AllocateAligned(std::size_t bytes) {
  const bool huge = bytes >= kHugePageFrom;
  const std::size_t alignment = huge ? kHugePage : kCacheLine;
  if (bytes > std::numeric_limits<std::size_t>::max() - alignment) throw std::bad_alloc();
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  // Advice only: without transparent huge pages it fails and nothing is lost.
  if (huge) madvise(memory, rounded, MADV_HUGEPAGE);
  return memory;
}

void FreeAligned(void* memory) noexcept { std::free(memory); }

// Advice only: where it is refused, the memory stays.
void OfferToSystem(void* memory, std::size_t bytes) noexcept { madvise(memory, bytes, MADV_FREE); }

}  // namespace slimformer
