// Memory that grows to the largest request and is then reused: no allocation in later calls.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace tendon::cpu {

template <class T>
class Scratch {
 public:
  // At least `count` elements, 64-byte aligned; content is unspecified.
  T* get(int64_t count) {
    if (count > count_) {
      data_.reset();
      data_.reset(allocate(static_cast<size_t>(count) * sizeof(T)));
      count_ = count;
    }
    return data_.get();
  }

  const T* peek() const { return data_.get(); }

 private:
  // Large ones begin at a huge page and ask for such pages: a matrix of some megabytes is read by
  // columns, and would miss in the translation cache at every row.
  static T* allocate(size_t bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    const bool huge = bytes >= kHuge;
    void* at = std::aligned_alloc(huge ? kHuge : 64, (bytes + 63) / 64 * 64);
    if (!at) throw std::bad_alloc();
    if (huge) ::madvise(at, bytes, MADV_HUGEPAGE);
    return static_cast<T*>(at);
  }
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t count_ = 0;
};

}  // namespace tendon::cpu
