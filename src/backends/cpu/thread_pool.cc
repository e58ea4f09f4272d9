#include "backends/cpu/thread_pool.h"

#include <chrono>

#include "tensor/parallel.h"

namespace tendon::cpu {
namespace {

constexpr int64_t kSpinNs = 100'000;  // longer than the gaps within one call
// With more threads than cores, one that spins is in the way of another.
constexpr int64_t kSpinCrowdedNs = 2000;
// What threads cost is at most this part of the time: after they made a job longer by some time,
// none is asked for so many times as long.
constexpr int64_t kAloneFactor = 20;

int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Until holds(), or for so long; false: not yet.
template <class Condition>
bool spin(int64_t limit_ns, const Condition& holds) {
  const int64_t end = now_ns() + limit_ns;
  do {
    for (int i = 0; i < 8; ++i) {
      if (holds()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  } while (now_ns() < end);
  return false;
}

constexpr int kHalfBits = 32;
bool is_left(uint64_t tasks) { return static_cast<uint32_t>(tasks) < tasks >> kHalfBits; }

}  // namespace

ThreadPool::ThreadPool(int threads)
    : spin_ns_(threads > hardware_threads() ? kSpinCrowdedNs : kSpinNs) {
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
  wake_ups_.fetch_add(1);
  wake_ups_.notify_all();
  for (std::thread& w : workers_) w.join();
}

bool ThreadPool::is_alone() const { return alone_until_ns_ != 0 && now_ns() < alone_until_ns_; }

bool ThreadPool::is_task_left() const { return is_left(tasks_.load()); }

// All tasks of the job before are done, so that nobody reads job_ now.
void ThreadPool::run_all(const Job& job, int64_t tasks) {
  const int64_t begin = now_ns();
  const auto count = static_cast<uint32_t>(tasks);
  job_ = job;
  done_.store(0, std::memory_order_relaxed);
  tasks_.store(uint64_t{count} << kHalfBits);
  if (asleep_.load() > 0) {
    wake_ups_.fetch_add(1);
    wake_ups_.notify_all();
  }
  const int64_t own = take_tasks(0), own_ns = now_ns() - begin;
  const auto all_done = [&] { return done_.load(std::memory_order_acquire) == count; };
  if (all_done()) return;
  if (!spin(spin_ns_, all_done))
    for (uint32_t done = done_.load(); done != count; done = done_.load()) done_.wait(done);
  const int64_t lost_ns = now_ns() - begin - (own > 0 ? own_ns / own * tasks : own_ns);
  alone_until_ns_ = own > 0 && lost_ns > 0 ? now_ns() + kAloneFactor * lost_ns : 0;
}

void ThreadPool::work(int thread) {
  while (!stop_) {
    if (take_tasks(thread) > 0 || spin(spin_ns_, [this] { return is_task_left() || stop_; }))
      continue;
    const uint32_t seen = wake_ups_.load();
    asleep_.fetch_add(1);
    // Whoever hands out tasks looks at asleep_ after that: one of the two sees the other.
    if (!is_task_left() && !stop_) wake_ups_.wait(seen);
    asleep_.fetch_sub(1);
  }
}

// How many this thread took.
int64_t ThreadPool::take_tasks(int thread) {
  int64_t taken = 0;
  while (is_task_left()) {
    const uint64_t tasks = tasks_.fetch_add(1);
    if (!is_left(tasks)) break;
    job_.call(job_.body, static_cast<uint32_t>(tasks), thread);
    ++taken;
    if (done_.fetch_add(1) + 1 == tasks >> kHalfBits) done_.notify_all();
  }
  return taken;
}

}  // namespace tendon::cpu
