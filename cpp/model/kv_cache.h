// The keys and values of one sequence, in pages that forks share.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "model/kv_memory.h"
#include "model/plan.h"
#include "ops/attention.h"

namespace slimformer::model {

// Grows page by page as a sequence does. A copy shares all pages; a page that is shared is
// copied when one of its owners is about to write to it. What a plan skips has no pages.
class KvCache {
 public:
  KvCache(const Plan& plan, ops::KvType type, std::optional<ops::KvWindow> window = {});

  const std::optional<ops::KvWindow>& window() const { return window_; }

  // For one pass over whole sequences: a step that keeps them as the step before did takes over
  // that step's pages.
  static KvCache OfOnePass(const Plan& plan, ops::KvType type);

  const ops::KvLayout& layout(std::size_t step) const { return steps_[step].layout; }

  // Makes positions [position, position + rows) of one attention step writable, everything from
  // `position` on being empty, and returns all its pages up to the last of these positions; null
  // where a page was let go.
  // Positions are written in order: `position` is what the cache holds.
  std::vector<std::byte*> Prepare(std::size_t step, std::size_t position, std::size_t rows);

  // Forgets all positions from `position` on.
  void Truncate(std::size_t position) noexcept;

  // Lets go of the pages that no row at `position` or behind it sees, where there is a window.
  void Release(std::size_t position) noexcept;

  // Whether everything that a row at `position` sees is still there.
  bool Holds(std::size_t position) const noexcept;

  // Memory of all pages, those shared with other caches included.
  std::size_t bytes() const noexcept;

 private:
  struct StepCache {
    ops::KvLayout layout;
    std::vector<std::shared_ptr<KvPage>> pages;
    std::optional<ops::KvWindow> window;  // what rows see, where the cache has a window
    std::size_t released = 0;             // pages before this one are there no more, sinks excepted
    std::size_t written = 0;              // positions that the last page was written up to
  };

  static std::size_t SinkPages(const StepCache& cache) noexcept;

  // The first page that a row at `position` sees, sinks left aside.
  static std::size_t FirstSeen(const StepCache& cache, std::size_t position) noexcept;

  std::optional<ops::KvWindow> window_;

  std::vector<StepCache> steps_;
  bool one_pass_ = false;
};

}  // namespace slimformer::model
