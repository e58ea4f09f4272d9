// A fixed set of threads for work of a few microseconds. They help; nothing waits for one that did
// not take a task.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace tendon::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // including the caller; at least 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // For estimates: values that pass through anything but a product, per nanosecond of one thread.
  static constexpr int64_t kValuesPerNs = 2;
  static constexpr int64_t kLong = 1'000'000'000;  // nanoseconds, of what is never a matter of them

  // Calls body(task, thread) once for every task in [0, tasks), each on whichever thread takes it,
  // and returns when all are done. `nanoseconds`: about what one thread needs for all of them; the
  // caller does alone what costs less than handing it out. So it does for a while after threads
  // made a job longer than it would have been without them: their cores are taken by something
  // else. Does not allocate. `body` must not throw.
  template <class Body>
  void run(int64_t tasks, int64_t nanoseconds, const Body& body) {
    if (tasks == 1 || workers_.empty() || nanoseconds < kHandOutNanoseconds || is_alone()) {
      for (int64_t t = 0; t < tasks; ++t) body(t, 0);
      return;
    }
    run_all({&body, [](const void* b, int64_t task,
                       int thread) { (*static_cast<const Body*>(b))(task, thread); }},
            tasks);
  }

 private:
  static constexpr int64_t kHandOutNanoseconds = 2000;
  struct Job {
    const void* body = nullptr;
    void (*call)(const void*, int64_t, int) = nullptr;
  };
  void end();
  bool is_alone() const;
  void run_all(const Job& job, int64_t tasks);
  void work(int thread);
  int64_t take_tasks(int thread);
  bool is_task_left() const;

  std::vector<std::thread> workers_;
  int64_t spin_ns_;             // before a thread sleeps
  int64_t alone_until_ns_ = 0;  // of the steady clock
  Job job_;                     // read by whoever has taken one of its tasks that is not done
  // Tasks of the job in the high half, the next one to take in the low half: who raises it has
  // taken that task, whatever job it is of by then.
  alignas(64) std::atomic<uint64_t> tasks_{0};
  alignas(64) std::atomic<uint32_t> done_{0};      // tasks of the job that are finished
  alignas(64) std::atomic<uint32_t> wake_ups_{0};  // sleeping threads wait for a change
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace tendon::cpu
