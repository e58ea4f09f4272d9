// A fixed set of threads for work of a few microseconds: they spin a while before they sleep.
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

  // Calls body(task, thread) once for every task in [0, tasks), each on whichever thread is free,
  // and returns when all are done. Does not allocate. `body` must not throw.
  template <class Body>
  void run(int64_t tasks, const Body& body) {
    if (tasks == 1 || workers_.empty()) {
      for (int64_t t = 0; t < tasks; ++t) body(t, 0);
      return;
    }
    run_all({&body, tasks, [](const void* b, int64_t task, int thread) {
               (*static_cast<const Body*>(b))(task, thread);
             }});
  }

 private:
  struct Job {
    const void* body = nullptr;
    int64_t tasks = 0;
    void (*call)(const void*, int64_t, int) = nullptr;
  };
  void end();
  void run_all(const Job& job);
  void work(int thread);
  void take_tasks(int thread);

  std::vector<std::thread> workers_;
  int spins_;  // before a thread sleeps
  Job job_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> round_{0};  // raised when a job is ready
  alignas(64) std::atomic<int> busy_{0};        // workers that have not finished the job
  std::atomic<bool> stop_{false};
};

}  // namespace tendon::cpu
