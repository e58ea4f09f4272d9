#include "tensor/tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "tensor/bf16.h"
#include "tensor/check.h"

namespace tendon {

int64_t byte_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16: return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean: return 1;
  }
  fail(Fault::internal, "byte_size: unknown element type {}", static_cast<int>(dtype));
}

std::string_view name(DType dtype) {
  constexpr std::string_view kNames[] = {"F32", "BF16", "F16", "F64", "I64",
                                         "I32", "I16",  "I8",  "U8",  "BOOL"};
  return kNames[static_cast<size_t>(dtype)];
}

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  ensure(dims.size() <= kRankMax, Fault::internal,
         "a shape has {} dimensions, at most {} are known", dims.size(), kRankMax);
  std::ranges::copy(dims, dims_.begin());
}

int64_t Shape::count() const {
  int64_t n = 1;
  for (const int64_t d : dims()) n *= d;
  return n;
}

bool Shape::operator==(const Shape& other) const {
  return std::ranges::equal(dims(), other.dims());
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (const int64_t d : shape.dims()) text += (text.size() > 1 ? ", " : "") + std::to_string(d);
  return text + "]";
}

HostTensor HostTensor::rows(int64_t first, int64_t last) const {
  ensure(shape.rank() >= 1 && first >= 0 && first <= last && last <= shape[0], Fault::internal,
         "rows {} to {} of {} {}", first, last, name, to_string(shape));
  std::array<int64_t, Shape::kRankMax> dims{};
  std::ranges::copy(shape.dims(), dims.begin());
  const size_t row_bytes = shape[0] == 0 ? 0 : bytes.size() / static_cast<size_t>(shape[0]);
  dims[0] = last - first;
  HostTensor part = *this;
  part.shape = Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(shape.rank())));
  part.bytes = bytes.subspan(row_bytes * static_cast<size_t>(first),
                             row_bytes * static_cast<size_t>(last - first));
  return part;
}

namespace {

template <class T>
T load(const HostTensor& tensor, int64_t i) {
  T value;
  std::memcpy(&value, tensor.bytes.data() + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

void forget_pages(const HostTensor& tensor) {
  constexpr uintptr_t kPage = 4096;
  if (!tensor.mapped) return;
  const auto first = reinterpret_cast<uintptr_t>(tensor.bytes.data());
  const size_t skipped = (kPage - first % kPage) % kPage;  // up to the first whole page
  if (skipped >= tensor.bytes.size()) return;
  const auto pages = tensor.bytes.subspan(skipped);
  ::madvise(const_cast<std::byte*>(pages.data()), pages.size() / kPage * kPage, MADV_DONTNEED);
}

namespace {

// As many elements as `to` has, from element `first` on.
void convert_range(const HostTensor& tensor, int64_t first, std::span<float> to) {
  const std::byte* from = tensor.bytes.data() + first * byte_size(tensor.dtype);
  const auto widen = [&](float (*convert)(uint16_t)) {
    for (size_t i = 0; i < to.size(); ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, from + 2 * i, 2);
      to[i] = convert(bits);
    }
  };
  switch (tensor.dtype) {
    case DType::f32:
      if (!to.empty()) std::memcpy(to.data(), from, to.size_bytes());
      return;
    case DType::bf16: return widen([](uint16_t bits) { return from_bf16(bits); });
    case DType::f16: return widen([](uint16_t bits) { return from_f16(bits); });
    default:
      fail(Fault::checkpoint, "{} has type {}, expected F32, BF16 or F16", tensor.name,
           name(tensor.dtype));
  }
}

}  // namespace

float element(const HostTensor& tensor, int64_t i) {
  float value = 0;
  convert_range(tensor, i, {&value, 1});
  return value;
}

double number(const HostTensor& t, int64_t i) {
  switch (t.dtype) {
    case DType::f64: return load<double>(t, i);
    case DType::i64: return static_cast<double>(load<int64_t>(t, i));
    case DType::i32: return load<int32_t>(t, i);
    case DType::i16: return load<int16_t>(t, i);
    case DType::i8: return load<int8_t>(t, i);
    case DType::u8:
    case DType::boolean: return load<uint8_t>(t, i);
    default: return element(t, i);
  }
}

void convert_to_f32(const HostTensor& tensor, std::span<float> to) {
  ensure(std::ssize(to) == tensor.shape.count(), Fault::internal, "{}: {} values into {} places",
         tensor.name, tensor.shape.count(), to.size());
  convert_range(tensor, 0, to);
}

void convert_row_to_f32(const HostTensor& tensor, int64_t row, std::span<float> to) {
  const int64_t size = tensor.shape[0] > 0 ? tensor.shape.count() / tensor.shape[0] : 0;
  ensure(row >= 0 && row < tensor.shape[0] && std::ssize(to) == size, Fault::internal,
         "{}: row {} of {} into {} places", tensor.name, row, tensor.shape[0], to.size());
  convert_range(tensor, row * size, to);
}

HostTensor host_tensor(std::string name, Shape shape, std::vector<float> values) {
  ensure(std::ssize(values) == shape.count(), Fault::internal, "{} {} got {} values", name,
         to_string(shape), values.size());
  auto owner = std::make_shared<const std::vector<float>>(std::move(values));
  return {std::move(name), DType::f32, shape, std::as_bytes(std::span(*owner)), owner};
}

}  // namespace tendon
