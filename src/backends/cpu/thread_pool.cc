#include "backends/cpu/thread_pool.h"

#include "tensor/parallel.h"

namespace tendon::cpu {
namespace {

constexpr int kSpins = 20000;      // some 100 microseconds: longer than the gaps within one call
constexpr int kSpinsCrowded = 50;  // with more threads than cores, a spinning one is in the way

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : spins_(threads > hardware_threads() ? kSpinsCrowded : kSpins) {
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
  } catch (const std::exception&) {  // the system has no more threads or memory
    end();
    throw;
  }
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
  stop_ = true;
  round_.fetch_add(1);
  round_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::run_all(const Job& job) {
  job_ = job;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1);
  round_.notify_all();
  take_tasks(0);
  for (int spins = 0;; ++spins) {
    const int busy = busy_.load();
    if (busy == 0) return;
    if (spins < spins_) {
      pause();
    } else {
      busy_.wait(busy);
    }
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; round_.load() == seen; ++spins) {
      if (spins < spins_) {
        pause();
      } else {
        round_.wait(seen);
      }
    }
    ++seen;
    if (stop_) return;
    take_tasks(thread);
    if (busy_.fetch_sub(1) == 1) busy_.notify_all();
  }
}

void ThreadPool::take_tasks(int thread) {
  const Job job = job_;
  for (int64_t t = next_.fetch_add(1); t < job.tasks; t = next_.fetch_add(1))
    job.call(job.body, t, thread);
}

}  // namespace tendon::cpu
