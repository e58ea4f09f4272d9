// Threads of a block are contexts of one host thread, switched where they wait for each other.
#include <ucontext.h>

#include <cstdlib>
#include <utility>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_HOST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_HOST_SANITIZED 1
#endif
#endif
#ifdef CUDA_ON_HOST_SANITIZED
#include <sanitizer/common_interface_defs.h>
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
#ifdef CUDA_ON_HOST_SANITIZED
  __sanitizer_start_switch_fiber(forever ? nullptr : &me.fake_stack, block.scheduler_stack,
                                 block.scheduler_stack_bytes);
#endif
  if (forever)
    setcontext(&block.scheduler);
  else
    swapcontext(&me.state, &block.scheduler);
#ifdef CUDA_ON_HOST_SANITIZED
  __sanitizer_finish_switch_fiber(me.fake_stack, &block.scheduler_stack,
                                  &block.scheduler_stack_bytes);
#endif
}

void start_thread() {
#ifdef CUDA_ON_HOST_SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  (*block.body)();
  block.threads[block.current].done = true;
  switch_to_scheduler(true);
}

void resume(unsigned i) {
  block.current = i;
  thread_index = dim3(i);
  Thread& next = block.threads[i];
#ifdef CUDA_ON_HOST_SANITIZED
  __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, next.stack.get(), kStackBytes);
#endif
  swapcontext(&block.scheduler, &next.state);
#ifdef CUDA_ON_HOST_SANITIZED
  __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
#endif
}

cudaError_t alive() {
  const Machine& m = machine();
  return m.lost_after >= 0 && m.launches > m.lost_after ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace

thread_local dim3 thread_index, block_index;

Machine& machine() {
  static Machine the_machine;
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

cudaError_t Stream::run(Work work) {
  if (capturing) {
    captured.push_back(std::move(work));
    return cudaSuccess;
  }
  ++machine().launches;
  if (alive() == cudaSuccess) work();
  return alive();
}

}  // namespace cuda_on_host

using cuda_on_host::alive;
using cuda_on_host::machine;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = machine().devices;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine().driver;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  p->major = machine().major;
  p->minor = machine().minor;
  p->totalGlobalMem = static_cast<size_t>(machine().bytes_max);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "invalid";
  }
}
const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    default: return "cudaErrorInvalidValue";
  }
}

// The size lies in front, so that memory can be counted when it is freed; AddressSanitizer watches
// the end.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  constexpr size_t kFront = 256;
  ++machine().mallocs;
  if (machine().bytes + static_cast<int64_t>(bytes) > machine().bytes_max)
    return cudaErrorMemoryAllocation;
  auto* all = static_cast<char*>(std::aligned_alloc(kFront, (kFront + bytes + 255) / 256 * 256));
  std::memcpy(all, &bytes, sizeof bytes);
  std::memset(all + kFront, 0xFF, bytes);  // NaNs: nothing is zero by itself
  machine().bytes += static_cast<int64_t>(bytes);
  *memory = all + kFront;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  char* all = static_cast<char*>(memory) - 256;
  size_t bytes = 0;
  std::memcpy(&bytes, all, sizeof bytes);
  machine().bytes -= static_cast<int64_t>(bytes);
  std::free(all);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice && stream->capturing)
    return cudaErrorStreamCaptureUnsupported;
  machine().copies_in += kind == cudaMemcpyHostToDevice;
  machine().copies_out += kind == cudaMemcpyDeviceToHost;
  return stream->run([=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new cuda_on_host::Stream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return alive(); }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  ++machine().captures;
  stream->capturing = true;
  stream->captured.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  *graph = new cudaGraph{std::exchange(stream->captured, {})};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned) {
  *exec = new cudaGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++machine().graph_launches;
  for (const cuda_on_host::Work& work : exec->work)
    if (const cudaError_t e = stream->run(work); e != cudaSuccess) return e;
  return cudaSuccess;
}
