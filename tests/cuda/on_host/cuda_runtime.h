// A model of CUDA on the host, for the tests of the cuda backend where there is no GPU: the part of
// the runtime that the backend uses, under the same names. Kernels run thread by thread, memory of
// the device is memory of the host, a stream is done when the call returns, a capture is a list of
// what to do. It shows what a kernel computes and what it touches (AddressSanitizer looks at
// shared and device memory), not races between blocks, limits of a GPU or speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ thread_local  // of the one thread that runs a block's threads in turn

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
constexpr unsigned cudaStreamNonBlocking = 1;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned the_x, unsigned the_y = 1) : x(the_x), y(the_y) {}
};

namespace cuda_on_host {

using Work = std::function<void()>;

struct Stream {
  bool capturing = false;
  std::vector<Work> captured;
  inline cudaError_t run(Work work);  // now, or when the graph is launched
};

// What the next calls do; a test may change it.
struct Machine {
  int devices = 1, major = 9, minor = 0, driver = 13000;
  int64_t bytes_max = int64_t{1} << 40, bytes = 0;  // of the device, and how many are taken
  int64_t mallocs = 0, launches = 0, captures = 0, graph_launches = 0;
  int64_t lost_after = -1;                // launches; then every call fails
  int64_t copies_in = 0, copies_out = 0;  // between host and device
};
Machine& machine();
inline cudaError_t alive() {
  const Machine& m = machine();
  return m.lost_after >= 0 && m.launches > m.lost_after ? cudaErrorLaunchFailure : cudaSuccess;
}

inline cudaError_t Stream::run(Work work) {
  if (capturing) {
    captured.push_back(std::move(work));
    return cudaSuccess;
  }
  ++machine().launches;
  if (alive() == cudaSuccess) work();
  return alive();
}

extern thread_local dim3 thread_index, block_index;
void synchronize_block();
// The value that the thread `from(lane)` of the same warp passes.
float exchange(float value, int lane);
int lane();
// Every thread of one block; `thread` runs once for each.
void run_block(unsigned threads, const std::function<void()>& thread);

}  // namespace cuda_on_host

using cudaStream_t = cuda_on_host::Stream*;
struct cudaGraph {
  std::vector<cuda_on_host::Work> work;
};
using cudaGraph_t = cudaGraph*;
using cudaGraphExec_t = cudaGraph*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
struct cudaDeviceProp {
  char name[256] = "a model of CUDA on the host";
  size_t totalGlobalMem = 0;
  int major = 0, minor = 0;
};
struct cudaFuncAttributes {
  int numRegs = 0;
};

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = cuda_on_host::machine().devices;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = cuda_on_host::machine().driver;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  p->major = cuda_on_host::machine().major;
  p->minor = cuda_on_host::machine().minor;
  p->totalGlobalMem = static_cast<size_t>(cuda_on_host::machine().bytes_max);
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "invalid";
  }
}
inline const char* cudaGetErrorName(cudaError_t) { return "an error of the model"; }

// The size lies in front, so that memory can be counted when it is freed; AddressSanitizer watches
// the end.
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  constexpr size_t kFront = 256;
  ++cuda_on_host::machine().mallocs;
  if (cuda_on_host::machine().bytes + static_cast<int64_t>(bytes) >
      cuda_on_host::machine().bytes_max)
    return cudaErrorMemoryAllocation;
  auto* all = static_cast<char*>(std::aligned_alloc(kFront, (kFront + bytes + 255) / 256 * 256));
  std::memcpy(all, &bytes, sizeof bytes);
  std::memset(all + kFront, 0xFF, bytes);  // NaNs: nothing is zero by itself
  cuda_on_host::machine().bytes += static_cast<int64_t>(bytes);
  *memory = all + kFront;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  char* all = static_cast<char*>(memory) - 256;
  size_t bytes = 0;
  std::memcpy(&bytes, all, sizeof bytes);
  cuda_on_host::machine().bytes -= static_cast<int64_t>(bytes);
  std::free(all);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice && stream->capturing)
    return cudaErrorStreamCaptureUnsupported;
  cuda_on_host::machine().copies_in += kind == cudaMemcpyHostToDevice;
  cuda_on_host::machine().copies_out += kind == cudaMemcpyDeviceToHost;
  return stream->run([=] { std::memcpy(to, from, bytes); });
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new cuda_on_host::Stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cuda_on_host::alive(); }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  ++cuda_on_host::machine().captures;
  stream->capturing = true;
  stream->captured.clear();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  *graph = new cudaGraph{std::exchange(stream->captured, {})};
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned) {
  *exec = new cudaGraph(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++cuda_on_host::machine().graph_launches;
  for (const cuda_on_host::Work& work : exec->work)
    if (const cudaError_t e = stream->run(work); e != cudaSuccess) return e;
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)(Parameters...)) {
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const std::tuple<Parameters...> given(arguments...);
  return config->stream->run([kernel, given, grid = config->gridDim, block = config->blockDim] {
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        cuda_on_host::block_index = dim3(x, y);
        cuda_on_host::run_block(block.x, [&] { std::apply(kernel, given); });
      }
  });
}

// Inside kernels.
#define threadIdx cuda_on_host::thread_index
#define blockIdx cuda_on_host::block_index
inline void __syncthreads() { cuda_on_host::synchronize_block(); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return cuda_on_host::exchange(value, cuda_on_host::lane() ^ mask);
}
inline float __shfl_sync(unsigned, float value, int from, int width) {
  return cuda_on_host::exchange(value, cuda_on_host::lane() / width * width + from % width);
}
inline float __uint_as_float(unsigned bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
