// What data is: element types, shapes, host tensors (bytes somebody else owns) and the handle to a
// backend's tensor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tendon {

enum class DType : uint8_t { f32, bf16, f16, f64, i64, i32, i16, i8, u8, boolean };

int64_t byte_size(DType dtype);
std::string_view name(DType dtype);

// Up to eight dimensions, row-major, outermost first.
class Shape {
 public:
  static constexpr int kRankMax = 8;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i < 0 ? i + rank_ : i)]; }
  int64_t count() const;  // elements; 1 for rank 0
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  bool operator==(const Shape& other) const;

 private:
  std::array<int64_t, kRankMax> dims_{};
  int rank_ = 0;
};

std::string to_string(const Shape& shape);  // "[816, 1152]"

// A read-only tensor in host memory: a mapped file, a generated buffer. `owner` keeps the bytes.
struct HostTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
  bool mapped = false;  // the bytes lie in a file: forgotten pages are read again when touched

  // Rows [first, last) of the outermost dimension, without a copy.
  HostTensor rows(int64_t first, int64_t last) const;
};

// Gives the memory of whole pages back, where the tensor is mapped; else does nothing.
void forget_pages(const HostTensor& tensor);

// Element i as float, for f32, bf16 and f16.
float element(const HostTensor& tensor, int64_t i);
// An element of any type, as a number.
double number(const HostTensor& tensor, int64_t i);
// All elements as float, for f32, bf16 and f16; `to` has shape.count() elements.
void convert_to_f32(const HostTensor& tensor, std::span<float> to);
// Row `row` of the outermost dimension; allocates nothing.
void convert_row_to_f32(const HostTensor& tensor, int64_t row, std::span<float> to);
HostTensor host_tensor(std::string name, Shape shape, std::vector<float> values);

// Storage that belongs to a backend. Counted by its users so that a backend can recycle it without
// asking the allocator; `retire` runs when the last handle goes.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void acquire() { ++users_; }
  void release() {
    if (--users_ == 0) retire();
  }

 protected:
  virtual ~Buffer() = default;
  virtual void retire() { delete this; }

 private:
  int users_ = 0;  // handles live on the thread that runs the model
};

// A handle to a backend's matrix: copying shares the storage. Empty when default-constructed.
class Tensor {
 public:
  Tensor() = default;
  Tensor(const Shape& shape, Buffer* buffer) : shape_(shape), buffer_(buffer) {
    buffer_->acquire();
  }
  Tensor(const Tensor& other) : shape_(other.shape_), buffer_(other.buffer_) {
    if (buffer_) buffer_->acquire();
  }
  Tensor(Tensor&& other) noexcept
      : shape_(other.shape_), buffer_(std::exchange(other.buffer_, nullptr)) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(shape_, other.shape_);
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~Tensor() {
    if (buffer_) buffer_->release();
  }

  explicit operator bool() const { return buffer_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t rows() const { return shape_[0]; }
  int64_t columns() const { return shape_[-1]; }
  Buffer* buffer() const { return buffer_; }

 private:
  Shape shape_;
  Buffer* buffer_ = nullptr;
};

}  // namespace tendon
