#include "model/kv_cache.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace slimformer::model {
namespace {

using kernels::kPagePositions;

std::size_t PagesFor(std::size_t positions) {
  return (positions + kPagePositions - 1) / kPagePositions;
}

}  // namespace

KvCache::KvCache(const Plan& plan, ops::KvType type) {
  for (const Step& step : plan.steps()) {
    if (const auto* attention = std::get_if<AttentionStep>(&step)) {
      steps_.push_back(
          {{type, attention->groups.size(), attention->head_dim, attention->value_dim}, {}, 0});
    }
  }
}

std::vector<std::byte*> KvCache::Prepare(std::size_t step, std::size_t position, std::size_t rows) {
  StepCache& cache = steps_[step];
  const std::size_t page_bytes = cache.layout.PageBytes();
  const std::size_t first = position / kPagePositions;
  if (first < cache.pages.size()) {
    std::shared_ptr<KvPage>& page = cache.pages[first];
    if (page.use_count() > 1) {
      auto copy = std::make_shared<KvPage>(page_bytes);
      std::memcpy(copy->data(), page->data(), page_bytes);
      page = std::move(copy);
    } else {
      // Another thread may just have let go of the page: what it read comes before what we write.
      std::atomic_thread_fence(std::memory_order_acquire);
    }
    if (cache.written > position) {
      ops::ClearPositions(cache.layout, position % kPagePositions, page->data());
    }
  }
  while (cache.pages.size() < PagesFor(position + rows)) {
    cache.pages.push_back(std::make_shared<KvPage>(page_bytes));
  }
  cache.written = position + rows;
  std::vector<std::byte*> pages;
  pages.reserve(cache.pages.size());
  for (const auto& page : cache.pages) pages.push_back(page->data());
  return pages;
}

void KvCache::Truncate(std::size_t position) noexcept {
  for (StepCache& cache : steps_) {
    const std::size_t pages = PagesFor(position);
    if (pages < cache.pages.size()) {
      cache.pages.resize(pages);
      cache.written = pages * kPagePositions;
    }
  }
}

std::size_t KvCache::bytes() const noexcept {
  std::size_t bytes = 0;
  for (const StepCache& cache : steps_) bytes += cache.pages.size() * cache.layout.PageBytes();
  return bytes;
}

}  // namespace slimformer::model
