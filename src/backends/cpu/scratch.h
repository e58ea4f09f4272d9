// Memory that grows to the largest request and is then reused: no allocation in later calls.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <new>

namespace tendon::cpu {

template <class T>
class Scratch {
 public:
  // At least `count` elements, 64-byte aligned; content is unspecified. Large ones ask for huge
  // pages: a matrix of some megabytes is read across its rows, and would miss in the translation
  // cache at each of them.
  T* get(int64_t count) {
    if (count > count_) {
      constexpr size_t kHuge = size_t{2} << 20;
      const size_t bytes = static_cast<size_t>(count) * sizeof(T);
      const std::align_val_t alignment{bytes >= kHuge ? kHuge : 64};
      data_.reset();
      data_ = {static_cast<T*>(::operator new(bytes, alignment)), Free{alignment}};
      if (bytes >= kHuge) ::madvise(data_.get(), bytes, MADV_HUGEPAGE);
      count_ = count;
    }
    return data_.get();
  }

  const T* peek() const { return data_.get(); }

 private:
  struct Free {
    std::align_val_t alignment{64};
    void operator()(T* p) const { ::operator delete(p, alignment); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t count_ = 0;
};

}  // namespace tendon::cpu
