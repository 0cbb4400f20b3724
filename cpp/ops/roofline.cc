#include "ops/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>

#include "base/aligned_buffer.h"

namespace slimformer::ops {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kBufferFloats = std::size_t{64} << 20;
constexpr std::size_t kStripFloats = std::size_t{1} << 16;  // what one task reads
constexpr std::size_t kFmaIterations = 200'000;             // about half a millisecond

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What calls of run(), which returns how much it did, came to per second.
struct Rate {
  double best;
  double mean;
};

// Calls run() for `seconds` and at least twice.
template <class Run>
Rate MeasureRate(double seconds, Run run) {
  const Clock::time_point begin = Clock::now();
  double best = 0.0;
  double done = 0.0;
  for (int runs = 0; runs < 2 || SecondsSince(begin) < seconds; ++runs) {
    const Clock::time_point start = Clock::now();
    const double work = run();
    best = std::max(best, work / SecondsSince(start));
    done += work;
  }
  return {best, done / SecondsSince(begin)};
}

}  // namespace

Roofline MeasureRoofline(ThreadPool& pool, const kernels::KernelTable& kernels, double seconds) {
  constexpr double kGiga = 1e9;
  const auto threads = static_cast<std::size_t>(pool.size());
  const Rate operations_rate = MeasureRate(seconds / 2, [&] {
    const std::size_t tasks = 8 * threads;
    std::atomic<std::size_t> operations{0};
    pool.ParallelFor(tasks, [&](std::size_t, int) {
      float sink[3] = {1.0F, 0.999F, 0.001F};
      operations += kernels.probe_fma(kFmaIterations, sink);
    });
    return static_cast<double>(operations.load());
  });

  AlignedBuffer<float> buffer(kBufferFloats);
  const std::size_t strips = kBufferFloats / kStripFloats;
  pool.ParallelFor(strips, [&](std::size_t strip, int) {
    std::fill_n(buffer.data() + strip * kStripFloats, kStripFloats, 1.0F);
  });
  const Rate bytes_rate = MeasureRate(seconds / 2, [&] {
    pool.ParallelFor(strips, [&](std::size_t strip, int) {
      float sink[3];
      kernels.probe_read(buffer.data() + strip * kStripFloats, kStripFloats, sink);
    });
    return static_cast<double>(buffer.bytes());
  });
  return {operations_rate.best / kGiga, bytes_rate.mean / kGiga};
}

}  // namespace slimformer::ops
