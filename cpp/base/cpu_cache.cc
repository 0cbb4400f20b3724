#include "base/cpu_cache.h"

#include <unistd.h>

namespace slimformer {
namespace {

std::size_t AskSecondLevelCacheBytes() noexcept {
  constexpr std::size_t kUsual = std::size_t{1} << 20;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? static_cast<std::size_t>(bytes) : kUsual;
#else
  return kUsual;
#endif
}

}  // namespace

std::size_t SecondLevelCacheBytes() noexcept {
  static const std::size_t bytes = AskSecondLevelCacheBytes();
  return bytes;
}

}  // namespace slimformer
