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

KvCache::KvCache(const Plan& plan, ops::KvType type, std::optional<ops::KvWindow> window)
    : window_(window) {
  for (const Step& step : plan.steps()) {
    const auto* attention = std::get_if<AttentionStep>(&step);
    if (attention == nullptr) continue;
    StepCache& cache = steps_.emplace_back();
    cache.layout = {type, attention->groups.size(), attention->head_dim, attention->value_dim};
    if (window) cache.window = ops::NarrowerWindow(attention->scores.window, window);
  }
}

KvCache KvCache::OfOnePass(const Plan& plan, ops::KvType type) {
  KvCache cache(plan, type);
  cache.one_pass_ = true;
  return cache;
}

std::size_t KvCache::SinkPages(const StepCache& cache) noexcept {
  return cache.window ? PagesFor(cache.window->sinks) : 0;
}

std::size_t KvCache::FirstSeen(const StepCache& cache, std::size_t position) noexcept {
  if (!cache.window || position < cache.window->Length()) return 0;
  return (position + 1 - cache.window->positions) / kPagePositions;
}

std::vector<std::byte*> KvCache::Prepare(std::size_t step, std::size_t position, std::size_t rows) {
  StepCache& cache = steps_[step];
  if (one_pass_ && step > 0 && steps_[step - 1].layout == cache.layout) {
    // The same positions are written again, so what lies behind them is as empty as it was.
    cache.pages = std::move(steps_[step - 1].pages);
  }
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
  for (const auto& page : cache.pages) pages.push_back(page ? page->data() : nullptr);
  return pages;
}

void KvCache::Truncate(std::size_t position) noexcept {
  for (StepCache& cache : steps_) {
    const std::size_t pages = PagesFor(position);
    if (pages < cache.pages.size()) {
      cache.pages.resize(pages);
      cache.written = pages * kPagePositions;
      cache.released = std::min(cache.released, pages);
    }
  }
}

void KvCache::Release(std::size_t position) noexcept {
  for (StepCache& cache : steps_) {
    const std::size_t end = std::min(FirstSeen(cache, position), cache.pages.size());
    for (std::size_t i = std::max(cache.released, SinkPages(cache)); i < end; ++i) {
      cache.pages[i].reset();
    }
    cache.released = std::max(cache.released, end);
  }
}

bool KvCache::Holds(std::size_t position) const noexcept {
  return std::ranges::all_of(steps_, [&](const StepCache& cache) {
    const std::size_t first = std::max(FirstSeen(cache, position), SinkPages(cache));
    return cache.released <= first || PagesFor(position) <= SinkPages(cache);
  });
}

std::size_t KvCache::bytes() const noexcept {
  std::size_t bytes = 0;
  for (const StepCache& cache : steps_) {
    const auto held = std::ranges::count_if(cache.pages, [](const auto& page) { return !!page; });
    bytes += static_cast<std::size_t>(held) * cache.layout.PageBytes();
  }
  return bytes;
}

}  // namespace slimformer::model
