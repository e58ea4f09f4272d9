// One GPU: its stream, its memory, and what its errors become.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace tendon::cuda {

// Throws what `e` means: Error(Fault::memory) out of device memory, Error(Fault::backend) for a
// missing, unfit or lost device.
void check(cudaError_t e, std::string_view what);

// Memory of the device that is handed out again. Whoever gets it works on the same stream, so it
// need not wait for who had it before.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();
  float* take(int64_t bytes);
  void give_back(float* memory, int64_t bytes);

 private:
  std::map<int64_t, std::vector<float*>> free_;  // by size
  std::vector<float*> all_;
  int64_t bytes_ = 0;  // taken from the device
};

// A matrix of floats on the device.
class CudaBuffer final : public Buffer {
 public:
  CudaBuffer(std::shared_ptr<Pool> pool, int64_t count)
      : pool_(std::move(pool)), bytes_(4 * count), data_(pool_->take(bytes_)) {}
  ~CudaBuffer() override { pool_->give_back(data_, bytes_); }
  float* data() const { return data_; }
  const Pool& pool() const { return *pool_; }

 private:
  std::shared_ptr<Pool> pool_;
  int64_t bytes_;
  float* data_;
};

inline float* data(const Tensor& x) {
  return x ? static_cast<CudaBuffer*>(x.buffer())->data() : nullptr;
}

inline bool from(const Tensor& x, const Pool& pool) {
  return &static_cast<CudaBuffer*>(x.buffer())->pool() == &pool;
}

// Memory that stays: weights, scratch.
struct FreeArray {
  void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceArray = std::unique_ptr<void, FreeArray>;
DeviceArray make_array(int64_t bytes);

class Device {
 public:
  // Throws Error(Fault::backend), saying what was found, without a GPU that the kernels run on.
  explicit Device(int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  // The calls of the runtime that follow on this thread are for this GPU.
  void use() const;
  cudaStream_t stream() const {
    use();
    return stream_;
  }
  const std::string& description() const { return description_; }
  void copy_in(const void* from, void* to, int64_t bytes) const;   // `from` may change afterwards
  void copy_out(const void* from, void* to, int64_t bytes) const;  // waits
  void copy(const void* from, void* to, int64_t bytes) const;
  void wait() const;

 private:
  int index_;
  std::string description_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace tendon::cuda
