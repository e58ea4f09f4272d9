// Threads of a block are contexts of one host thread, switched where they wait for each other.
#include <ucontext.h>

#include <cstdlib>
#include <utility>

#include "cublasLt.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_HOST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_HOST_SANITIZED 1
#endif
#endif
#ifdef CUDA_ON_HOST_SANITIZED
#include <sanitizer/common_interface_defs.h>
#else  // nobody to tell
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kWarp = 32;

struct Thread {
  ucontext_t state{};
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  void* fake_stack = nullptr;  // of AddressSanitizer
  bool done = false;
  int64_t waits = 0;  // how many times it has waited for its block or warp
  float slot[2] = {};
};

struct Block {
  std::vector<Thread> threads;
  std::vector<int64_t> exchanges;  // of each thread
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler{};
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  unsigned current = 0;
};

thread_local Block block;

void switch_to_scheduler(bool forever) {
  Thread& me = block.threads[block.current];
  __sanitizer_start_switch_fiber(forever ? nullptr : &me.fake_stack, block.scheduler_stack,
                                 block.scheduler_stack_bytes);
  if (forever)
    setcontext(&block.scheduler);
  else
    swapcontext(&me.state, &block.scheduler);
  __sanitizer_finish_switch_fiber(me.fake_stack, &block.scheduler_stack,
                                  &block.scheduler_stack_bytes);
}

void start_thread() {
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  (*block.body)();
  block.threads[block.current].done = true;
  switch_to_scheduler(true);
}

void resume(unsigned i) {
  block.current = i;
  thread_index = dim3(i);
  Thread& next = block.threads[i];
  __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, next.stack.get(), kStackBytes);
  swapcontext(&block.scheduler, &next.state);
  __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
}

}  // namespace

thread_local dim3 thread_index, block_index;

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

BlasMachine& blas_machine() {
  static BlasMachine the_machine;
  return the_machine;
}

int lane() { return static_cast<int>(thread_index.x % kWarp); }

// Every thread that is not done runs up to here before any runs on: the scheduler goes through them
// in turn, so one yield is one barrier, provided that all threads wait equally often.
void synchronize_block() {
  ++block.threads[block.current].waits;
  switch_to_scheduler(false);
}

float exchange(float value, int from) {
  const unsigned me = block.current;
  const size_t slot = static_cast<size_t>(block.exchanges[me]++ % 2);
  block.threads[me].slot[slot] = value;
  synchronize_block();
  return block.threads[me / kWarp * kWarp + static_cast<unsigned>(from)].slot[slot];
}

void run_block(unsigned threads, const std::function<void()>& thread) {
  if (block.threads.size() < threads) block.threads = std::vector<Thread>(threads);
  block.exchanges.assign(threads, 0);
  block.body = &thread;
  for (unsigned i = 0; i < threads; ++i) {
    Thread& t = block.threads[i];
    t.done = false;
    t.waits = 0;
    getcontext(&t.state);
    t.state.uc_stack = {.ss_sp = t.stack.get(), .ss_flags = 0, .ss_size = kStackBytes};
    t.state.uc_link = nullptr;
    makecontext(&t.state, start_thread, 0);
  }
  for (bool running = true; running;) {
    running = false;
    int64_t waits = -1;
    for (unsigned i = 0; i < threads; ++i) {
      Thread& t = block.threads[i];
      if (t.done) continue;
      resume(i);
      if (t.done) continue;
      running = true;
      if (waits >= 0 && t.waits != waits) std::abort();  // a barrier that some threads do not reach
      waits = t.waits;
    }
  }
}

}  // namespace cuda_on_host
