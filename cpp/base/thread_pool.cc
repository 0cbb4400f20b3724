#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "base/error.h"

namespace slimformer {
namespace {

constexpr int kMaxThreads = 1024;

// How long a worker watches for the next loop before it sleeps: some 100 microseconds, longer than
// the serial stretches between the loops of a forward pass and what a caller does between two
// tokens, shorter than anybody's time slice.
constexpr int kSpins = 8000;

// How long a caller watches for the last tasks before it gives its core to whoever has them.
constexpr int kSpinsBeforeYield = 2000;

void Pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

constexpr std::uint64_t Ticket(std::uint64_t loop, std::size_t left) {
  return (loop << 32) | static_cast<std::uint64_t>(left);
}
constexpr std::uint64_t LoopOf(std::uint64_t ticket) { return ticket >> 32; }
constexpr std::size_t LeftOf(std::uint64_t ticket) { return ticket & 0xffffffffU; }

constexpr std::uint64_t Range(std::size_t first, std::size_t last) {
  return (static_cast<std::uint64_t>(first) << 32) | static_cast<std::uint64_t>(last);
}

// Takes a task of the range, its first or its last one.
std::optional<std::size_t> TakeOf(std::atomic<std::uint64_t>& range, bool is_own) noexcept {
  std::uint64_t left = range.load(std::memory_order_relaxed);
  while (true) {
    const std::size_t first = left >> 32;
    const std::size_t last = left & 0xffffffffU;
    if (first == last) return std::nullopt;
    const std::uint64_t rest = is_own ? Range(first + 1, last) : Range(first, last - 1);
    if (range.compare_exchange_weak(left, rest, std::memory_order_relaxed)) {
      return is_own ? first : last - 1;
    }
  }
}

void CheckLength(std::size_t n) {
  if (n > std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorKind::data, "a parallel loop of " + std::to_string(n) + " tasks is too long");
  }
}

}  // namespace

int AvailableCores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(cores);
}

std::shared_ptr<ThreadPool> ThreadPool::Shared(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    throw Error(ErrorKind::config, "threads must be between 0 (every available core) and " +
                                       std::to_string(kMaxThreads) + ", not " +
                                       std::to_string(threads));
  }
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const int size = threads == 0 ? AvailableCores() : threads;
  const std::lock_guard lock(mutex);
  std::shared_ptr<ThreadPool> pool = pools[size].lock();
  if (pool == nullptr) {
    pool = std::make_shared<ThreadPool>(size);
    pools[size] = pool;
  }
  return pool;
}

ThreadPool::ThreadPool(int threads) : shares_(static_cast<std::size_t>(threads)) {
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  for (int worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] { Work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  {
    const std::lock_guard lock(park_mutex_);
    park_condition_.notify_all();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(std::size_t n, Invoke invoke, const void* context) {
  if (n == 0) return;
  CheckLength(n);
  const std::lock_guard lock(loop_mutex_);
  RunLoop(n, invoke, context);
}

// A loop with one task for each worker, which runs tasks of the shares until there are none.
void ThreadPool::RunShares(std::size_t n, Invoke invoke, const void* context) {
  if (n == 0) return;
  CheckLength(n);
  const std::lock_guard lock(loop_mutex_);
  const std::size_t workers = shares_.size();
  for (std::size_t worker = 0; worker < workers; ++worker) {
    shares_[worker].left.store(Range(n * worker / workers, n * (worker + 1) / workers),
                               std::memory_order_relaxed);
  }
  const auto run = [&](std::size_t, int worker) {
    while (const std::optional<std::size_t> index = TakeOfShares(worker)) {
      Call(invoke, context, *index, worker);
    }
  };
  RunLoop(std::min(n, workers), kInvoke<decltype(run)>, &run);
}

void ThreadPool::RunLoop(std::size_t n, Invoke invoke, const void* context) {
  invoke_.store(invoke, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  count_.store(n, std::memory_order_relaxed);
  finished_.store(0, std::memory_order_relaxed);
  // Sequentially consistent, like parking: either the worker sees this loop before it sleeps or
  // we see that it is parked.
  ticket_.store(Ticket(LoopOf(ticket_.load()) + 1, n));
  if (n > 1 && parked_.load() > 0) WakeWorkers();

  while (RunOneTask(0)) {
  }
  for (int spins = 0; finished_.load(std::memory_order_acquire) != n; ++spins) {
    if (spins < kSpinsBeforeYield) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

bool ThreadPool::RunOneTask(int worker) noexcept {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (true) {
    const std::size_t left = LeftOf(ticket);
    if (left == 0) return false;
    // While tasks are left the loop's fields stay as they are, so if the exchange succeeds these
    // belong to this ticket.
    const std::size_t index = count_.load(std::memory_order_relaxed) - left;
    const Invoke invoke = invoke_.load(std::memory_order_relaxed);
    const void* const context = context_.load(std::memory_order_relaxed);
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    Call(invoke, context, index, worker);
    finished_.fetch_add(1, std::memory_order_release);
    return true;
  }
}

void ThreadPool::Call(Invoke invoke, const void* context, std::size_t index, int worker) noexcept {
  try {
    invoke(context, index, worker);
  } catch (...) {
    const std::lock_guard lock(failure_mutex_);
    if (failure_ == nullptr) failure_ = std::current_exception();
  }
}

// A task of the worker's own share or, if there is none left, of another's.
std::optional<std::size_t> ThreadPool::TakeOfShares(int worker) noexcept {
  const std::size_t workers = shares_.size();
  for (std::size_t i = 0; i < workers; ++i) {
    const std::size_t share = (static_cast<std::size_t>(worker) + i) % workers;
    if (const auto index = TakeOf(shares_[share].left, i == 0)) return index;
  }
  return std::nullopt;
}

void ThreadPool::WakeWorkers() {
  const std::lock_guard lock(park_mutex_);
  park_condition_.notify_all();
}

void ThreadPool::Work(int worker) {
  while (true) {
    while (RunOneTask(worker)) {
    }
    const std::uint64_t seen = ticket_.load();
    int spins = 0;
    while (LoopOf(ticket_.load(std::memory_order_acquire)) == LoopOf(seen) && spins < kSpins &&
           !stop_.load(std::memory_order_relaxed)) {
      Pause();
      ++spins;
    }
    if (stop_.load()) return;
    if (LoopOf(ticket_.load()) != LoopOf(seen)) continue;
    std::unique_lock lock(park_mutex_);
    parked_.fetch_add(1);
    park_condition_.wait(lock,
                         [&] { return LoopOf(ticket_.load()) != LoopOf(seen) || stop_.load(); });
    parked_.fetch_sub(1);
  }
}

}  // namespace slimformer
