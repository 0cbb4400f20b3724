// What this CPU's caches hold.
#pragma once

#include <cstddef>

namespace slimformer {

// Bytes of a core's second-level cache, asked once; 1 MiB where the system does not say.
std::size_t SecondLevelCacheBytes() noexcept;

}  // namespace slimformer
