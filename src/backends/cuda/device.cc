#include "backends/cuda/device.h"

#include <bit>

#include "backends/cuda/kernels.h"
#include "tensor/check.h"

namespace tendon::cuda {
namespace {

constexpr int kOldest = 80;  // compute capability times ten of the oldest GPU with bf16 products

Fault fault_of(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? Fault::memory : Fault::backend;
}

// Sizes in steps of an eighth of a power of two: at most that much is wasted, and prompts of many
// lengths share what few sizes there are.
int64_t size_class(int64_t bytes) {
  const auto n = static_cast<uint64_t>(std::max<int64_t>(bytes, 256));
  const uint64_t step = std::bit_floor(n) / 8;
  return static_cast<int64_t>((n + step - 1) / step * step);
}

}  // namespace

void check(cudaError_t e, std::string_view what) {
  if (e == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  fail(fault_of(e), "[cuda] {}: {} ({})", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

Pool::~Pool() {
  for (float* memory : all_) cudaFree(memory);
}

// Nothing goes back to the device before the end: a policy asks for the same sizes in every call,
// and cudaFree would wait for all work.
float* Pool::take(int64_t bytes) {
  const int64_t size = size_class(bytes);
  std::vector<float*>& free = free_[size];
  if (!free.empty()) {
    float* memory = free.back();
    free.pop_back();
    return memory;
  }
  void* memory = nullptr;
  all_.reserve(all_.size() + 1);
  check(cudaMalloc(&memory, static_cast<size_t>(size)),
        fmt::format("{:.1f} MB beside {:.1f} MB of activations", static_cast<double>(size) / 1e6,
                    static_cast<double>(bytes_) / 1e6));
  bytes_ += size;
  all_.push_back(static_cast<float*>(memory));
  return all_.back();
}

void Pool::give_back(float* memory, int64_t bytes) { free_[size_class(bytes)].push_back(memory); }

DeviceArray make_array(int64_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<size_t>(bytes)),
        fmt::format("{:.1f} MB of weights", static_cast<double>(bytes) / 1e6));
  return DeviceArray(memory);
}

Device::Device(int index) : index_(index) {
  // Without a driver the runtime's own error would say that the driver is too old.
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  cudaGetLastError();
  ensure(driver > 0, Fault::backend,
         "the cuda backend found no GPU: no NVIDIA driver is installed (libcuda.so.1)");
  ensure(found == cudaSuccess, Fault::backend,
         "the cuda backend found no GPU: {}; the driver is for CUDA {}.{}",
         cudaGetErrorString(found), driver / 1000, driver % 1000 / 10);
  ensure(index >= 0 && index < count, Fault::backend,
         "the cuda backend found {} GPUs, so there is no number {}", count, index);
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, index), "reading the properties of the GPU");
  description_ = fmt::format("{}, compute capability {}.{}, {:.1f} GB", p.name, p.major, p.minor,
                             static_cast<double>(p.totalGlobalMem) / 1e9);
  ensure(10 * p.major + p.minor >= kOldest, Fault::backend,
         "the kernels of the cuda backend need compute capability {}.{} or newer, found {}",
         kOldest / 10, kOldest % 10, description_);
  use();
  check(prepare_kernels(), "loading the kernels for " + description_);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
}

void Device::use() const { check(cudaSetDevice(index_), "choosing the GPU"); }

Device::~Device() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

// From memory that is not pinned: the runtime has its own copy of it when the call returns.
void Device::copy_in(const void* from, void* to, int64_t bytes) const {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream()),
        "upload");
}

void Device::copy_out(const void* from, void* to, int64_t bytes) const {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream()),
        "download");
  wait();
}

void Device::copy(const void* from, void* to, int64_t bytes) const {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream()),
        "copy");
}

void Device::wait() const { check(cudaStreamSynchronize(stream()), "the GPU's work"); }

}  // namespace tendon::cuda
