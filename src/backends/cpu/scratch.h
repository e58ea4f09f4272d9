// Memory that grows to the largest request and is then reused: no allocation in later calls.
#pragma once

#include <cstdint>
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
      data_.reset(static_cast<T*>(
          ::operator new (static_cast<size_t>(count) * sizeof(T), std::align_val_t{64})));
      count_ = count;
    }
    return data_.get();
  }

 public:
  const T* peek() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t count_ = 0;
};

}  // namespace tendon::cpu
