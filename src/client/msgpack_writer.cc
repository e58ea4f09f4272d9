#include <bit>
#include <functional>
#include <numeric>

#include "client/bytes.h"
#include "client/msgpack.h"
#include "tensor/check.h"

namespace tendon::msgpack {
namespace {

// The low `bytes` bytes of value, big-endian.
void put(std::string& out, uint64_t value, int bytes) {
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
    out.push_back(static_cast<char>(value >> shift));
}

// The tags of one family of values: `fixed` holds counts up to fixed_max itself, and the three
// others are followed by 1, 2 or 4 bytes of it; 0 where msgpack has no such form.
struct Tags {
  uint8_t fixed, fixed_count, one_byte, two_bytes, four_bytes;
};
constexpr Tags kMap{0x80, 16, 0, 0xde, 0xdf};
constexpr Tags kList{0x90, 16, 0, 0xdc, 0xdd};
constexpr Tags kText{0xa0, 32, 0xd9, 0xda, 0xdb};
constexpr Tags kBytes{0, 0, 0xc4, 0xc5, 0xc6};

void put_count(std::string& out, const Tags& tags, uint64_t count) {
  ensure(count <= UINT32_MAX, Fault::internal, "msgpack cannot hold {} bytes or items in one value",
         count);
  if (count < tags.fixed_count) return put(out, tags.fixed | count, 1);
  const int bytes = count <= 0xff && tags.one_byte ? 1 : count <= 0xffff ? 2 : 4;
  put(out, bytes == 1 ? tags.one_byte : bytes == 2 ? tags.two_bytes : tags.four_bytes, 1);
  put(out, count, bytes);
}

}  // namespace

void Writer::map(int64_t entries) { put_count(out_, kMap, static_cast<uint64_t>(entries)); }

void Writer::list(int64_t items) { put_count(out_, kList, static_cast<uint64_t>(items)); }

void Writer::text(std::string_view value) {
  put_count(out_, kText, value.size());
  out_ += value;
}

void Writer::bytes(std::span<const uint8_t> value) {
  put_count(out_, kBytes, value.size());
  out_.append(reinterpret_cast<const char*>(value.data()), value.size());
}

void Writer::integer(int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  if (value >= -32 && value < 128) return put(out_, bits, 1);
  // 2^size bytes: the unsigned tags are 0xcc to 0xcf, the signed ones 0xd0 to 0xd3.
  const uint64_t magnitude = value < 0 ? ~bits << 1 : bits;
  const unsigned size = magnitude <= 0xff         ? 0
                        : magnitude <= 0xffff     ? 1
                        : magnitude <= 0xffffffff ? 2
                                                  : 3;
  put(out_, (value < 0 ? 0xd0U : 0xccU) + size, 1);
  put(out_, bits, 1 << size);
}

void Writer::number(double value) {
  put(out_, 0xcb, 1);
  put(out_, std::bit_cast<uint64_t>(value), 8);
}

void Writer::boolean(bool value) { put(out_, value ? 0xc3 : 0xc2, 1); }

void Writer::nil() { put(out_, 0xc0, 1); }

void Writer::array(std::string_view dtype, std::span<const int64_t> shape,
                   std::span<const uint8_t> data, Keys keys) {
  const auto key = [&](std::string_view name) {
    keys == Keys::texts ? text(name) : bytes(bytes_of(name));
  };
  map(4);
  key("__ndarray__");
  boolean(true);
  key("data");
  bytes(data);
  key("dtype");
  text(dtype);
  key("shape");
  list(std::ssize(shape));
  for (const int64_t size : shape) integer(size);
}

void Writer::array(std::span<const double> values, std::span<const int64_t> shape) {
  const int64_t size = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  ensure(size == std::ssize(values), Fault::internal,
         "an array of {} numbers was given a shape of {}", values.size(), size);
  const auto data = std::as_bytes(values);
  array("<f8", shape, {reinterpret_cast<const uint8_t*>(data.data()), data.size()});
}

void Writer::scalar(const Value& any) {
  map(3);
  bytes(bytes_of("__npgeneric__"));
  boolean(true);
  bytes(bytes_of("data"));
  const DType dtype = any.array.dtype;
  Value plain = any;
  plain.kind = dtype == DType::b1  ? Value::Kind::boolean
               : dtype == DType::U ? Value::Kind::text
               : dtype == DType::S ? Value::Kind::bytes
               : is_float(dtype)   ? Value::Kind::number
                                   : Value::Kind::integer;
  value(plain);
  bytes(bytes_of("dtype"));
  text(any.array.dtype_name());
}

void Writer::value(const Value& any) {
  switch (any.kind) {
    case Value::Kind::nil: return nil();
    case Value::Kind::boolean: return boolean(any.boolean);
    case Value::Kind::number: return number(any.number);
    case Value::Kind::text: return text(any.text);
    case Value::Kind::bytes: return bytes(bytes_of(any.text));
    case Value::Kind::scalar: return scalar(any);
    case Value::Kind::array: return array(any.array.dtype_name(), any.array.shape, any.array.data);
    case Value::Kind::integer:
      if (!any.above_int64) return integer(any.integer);
      put(out_, 0xcf, 1);
      return put(out_, static_cast<uint64_t>(any.integer), 8);
    case Value::Kind::list:
      list(std::ssize(any.list));
      for (const Value& item : any.list) value(item);
      return;
    case Value::Kind::map:
      map(std::ssize(any.map));
      for (const Entry& entry : any.map) {
        entry.bytes_key ? bytes(bytes_of(entry.key)) : text(entry.key);
        value(entry.value);
      }
  }
}

}  // namespace tendon::msgpack
