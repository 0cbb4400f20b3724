// Memory for packed weights.
#pragma once

#include <cstddef>
#include <memory>

namespace slimformer::tensor {

// `bytes` of memory aligned to 64, not initialised. Matrices that are allocated one after another
// lie side by side in chunks of huge pages, which a matrix of a few megabytes could not fill by
// itself: decoding streams through all of them, and with 4 KiB pages it streams a quarter slower
// (a page walk every 64 cache lines, and hardware prefetching ends at a page). A chunk goes back
// when the last matrix in it does. Throws std::bad_alloc.
std::shared_ptr<std::byte> AllocateWeights(std::size_t bytes);

}  // namespace slimformer::tensor
