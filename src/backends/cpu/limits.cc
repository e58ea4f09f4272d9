// What the machine can do at most, measured.
#include <algorithm>

#include "backends/cpu/cpu.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/scratch.h"
#include "backends/cpu/thread_pool.h"
#include "tensor/parallel.h"
#include "tensor/stop_watch.h"

namespace tendon {

double cpu_peak(const CpuOptions& options) {
  const auto form = options.precision;
  const cpu::SimdKernels& isa = cpu::isa_for(options.isa, form);
  cpu::ThreadPool pool(options.threads > 0 ? options.threads : hardware_threads());
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    constexpr int64_t kRounds = 1000000;  // some 10 ms
    StopWatch watch;
    pool.run(pool.threads(), cpu::ThreadPool::kLong,
             [&](int64_t, int) { isa.peak(form, kRounds); });
    const double flops = isa.peak(form, 0) + isa.peak(form, 1) * kRounds * pool.threads();
    best = std::max(best, flops / watch.lap_ms() / 1e6);
  }
  return best;
}

double cpu_bandwidth(int threads) {
  cpu::ThreadPool pool(threads > 0 ? threads : hardware_threads());
  constexpr int64_t kWords = int64_t{64} << 20;  // 256 MiB: more than any cache
  cpu::Scratch<uint32_t> memory;
  uint32_t* words = memory.get(kWords);
  const int64_t part = kWords / pool.threads();
  pool.run(pool.threads(), cpu::ThreadPool::kLong, [&](int64_t t, int) {
    for (int64_t i = t * part; i < (t + 1) * part; ++i) words[i] = static_cast<uint32_t>(i);
  });
  double best = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    StopWatch watch;
    pool.run(pool.threads(), cpu::ThreadPool::kLong, [&](int64_t t, int) {
      uint32_t sums[16] = {};
      for (int64_t i = t * part; i + 16 <= (t + 1) * part; i += 16)
        for (int64_t l = 0; l < 16; ++l) sums[l] += words[i + l];
      asm volatile("" : : "m"(sums));
    });
    best = std::max(best, 4.0 * kWords / watch.lap_ms() / 1e6);
  }
  return best;
}

}  // namespace tendon
