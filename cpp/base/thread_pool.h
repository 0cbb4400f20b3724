// A fixed set of threads that run the tasks of one parallel loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

namespace slimformer {

// Cores this process may use.
int AvailableCores();

class ThreadPool {
 public:
  // The pool of that size, shared by everybody in the process who asks for it and joined when
  // the last of them lets go. 0 means every available core. Error(config) below 0 or above 1024.
  static std::shared_ptr<ThreadPool> Shared(int threads);

  // `threads` >= 1, the calling thread included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, worker) once for every index < n, with 0 <= worker < size(), and returns
  // when all are done. Tasks are handed out one by one in rising order; the caller, worker 0,
  // takes part. Loops of several calling threads run one after another. The first exception
  // that a task throws is rethrown here, after the rest has run. A task must not start a loop.
  template <class F>
  void ParallelFor(std::size_t n, F&& task) {
    Run(n, kInvoke<F>, static_cast<const void*>(std::addressof(task)));
  }

  // The same, but tasks that adjoin stay with one worker: each begins with its share of them, in
  // rising order, and when it is through takes the last that another has not begun. For tasks that
  // read memory from one end to the other, and small ones, since nobody waits longer for the end
  // than a task takes.
  template <class F>
  void ParallelShares(std::size_t n, F&& task) {
    RunShares(n, kInvoke<F>, static_cast<const void*>(std::addressof(task)));
  }

 private:
  using Invoke = void (*)(const void* context, std::size_t index, int worker);

  template <class F>
  static constexpr Invoke kInvoke = [](const void* context, std::size_t index, int worker) {
    using Task = std::remove_reference_t<F>;
    Task& function = *static_cast<Task*>(const_cast<void*>(context));
    function(index, worker);
  };

  // Tasks [first, last) of one worker that nobody has taken yet: first in the high half, last in
  // the low one.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> left{0};
  };

  void Run(std::size_t n, Invoke invoke, const void* context);
  void RunShares(std::size_t n, Invoke invoke, const void* context);
  void RunLoop(std::size_t n, Invoke invoke, const void* context);
  void Work(int worker);
  bool RunOneTask(int worker) noexcept;
  void Call(Invoke invoke, const void* context, std::size_t index, int worker) noexcept;
  std::optional<std::size_t> TakeOfShares(int worker) noexcept;
  void WakeWorkers();

  std::mutex loop_mutex_;  // held by the caller whose loop runs

  // The running loop. `ticket_` holds its number (high half) and how many of its tasks nobody
  // has taken yet (low half). Taking a task is a compare-and-swap of the ticket, so a worker that
  // slept through a loop cannot take a task of a later one by mistake; the caller therefore
  // waits for tasks to finish, never for a sleeping worker.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  std::atomic<Invoke> invoke_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<std::size_t> count_{0};
  alignas(64) std::atomic<std::size_t> finished_{0};

  alignas(64) std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  std::mutex park_mutex_;
  std::condition_variable park_condition_;

  std::vector<Share> shares_;  // [size()], of the running loop if that is one of shares

  std::mutex failure_mutex_;
  std::exception_ptr failure_;

  std::vector<std::thread> workers_;
};

}  // namespace slimformer
