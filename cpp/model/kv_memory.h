// Memory for the pages of keys and values.
#pragma once

#include <cstddef>
#include <memory>

#include "base/aligned_buffer.h"

namespace slimformer::model {

// Memory of one page, zeroed. Pages lie side by side in chunks of huge pages, whoever they belong
// to: a decoding step reads them all, and a fresh one costs no page fault of its own. A chunk is
// free when its last page is; some free ones wait for the next sequences, lent to the system.
class KvPage {
 public:
  explicit KvPage(std::size_t bytes);
  KvPage(const KvPage&) = delete;
  KvPage& operator=(const KvPage&) = delete;

  std::byte* data() const noexcept { return data_; }

 private:
  using Chunk = AlignedBuffer<std::byte>;

  std::shared_ptr<Chunk> chunk_;
  std::byte* data_;
};

}  // namespace slimformer::model
