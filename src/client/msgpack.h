// The subset of msgpack that openpi's clients speak, with msgpack-numpy's arrays and scalars.
// Decoding gives views into the message and checks every length before it reserves anything.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tendon::msgpack {

constexpr int kDepthMax = 16;             // of lists and maps inside each other
constexpr int64_t kMapEntriesMax = 4096;  // of all maps together
constexpr int64_t kValuesMax = 65536;     // of the whole message
constexpr int64_t kDimsMax = 8;           // of one array

// NumPy's kinds that are accepted; U and S are arrays of fixed-width strings.
enum class DType { b1, i1, i2, i4, i8, u1, u2, u4, u8, f2, f4, f8, U, S };

inline bool is_float(DType type) {
  return type == DType::f2 || type == DType::f4 || type == DType::f8;
}
inline bool is_text(DType type) { return type == DType::U || type == DType::S; }

// A view of an ndarray; data may be unaligned.
struct Array {
  DType dtype = DType::u1;
  bool big_endian = false;
  int64_t item_bytes = 1;      // of U: 4 per character
  std::vector<int64_t> shape;  // row-major; {} is one value
  std::span<const uint8_t> data;

  int64_t size() const;            // product of shape
  double number(int64_t i) const;  // of every numeric dtype and b1
  std::vector<double> numbers() const;
  // UTF-8 of a U or S item without its padding of zeros. Throws Error(Fault::input) for what is no
  // Unicode.
  std::string text(int64_t i) const;
  std::string dtype_name() const;  // "<f8", "|u1", ">U2"
};

// An array of NumPy's dtype.str, such as "<f4", still without shape and data. Throws
// Error(Fault::input) for dtypes that are not accepted.
Array array_of_dtype(std::string_view dtype);

struct Entry;

struct Value {
  enum class Kind { nil, boolean, integer, number, text, bytes, list, map, array, scalar };
  Kind kind = Kind::nil;
  bool boolean = false;
  int64_t integer = 0;  // kind integer; as uint64_t where `above_int64`
  bool above_int64 = false;
  double number = 0;      // kind number
  std::string_view text;  // kinds text (valid UTF-8) and bytes: a view into the message
  std::vector<Value> list;
  std::vector<Entry> map;  // duplicate keys: only the last is kept, at the place of the first
  // Kind array. Kind scalar, a NumPy scalar: dtype and shape {} of it, no data; its value is in
  // boolean, integer, number or text, as it was sent.
  Array array;

  // The value under a text or bytes key of a map, else nullptr.
  const Value* find(std::string_view key) const;
};

struct Entry {
  std::string_view key;
  bool bytes_key = false;
  Value value;
};

// Of a number, an integer or a NumPy scalar of one; a boolean is none.
std::optional<double> plain_number(const Value& value);

// "a map", "a text", "an array <f8 [14]": for messages about what was got.
std::string describe(const Value& value);

// The only value of `message`, which must outlive the result. Throws Error(Fault::input): what is
// wrong and at which byte. A map with the key __ndarray__ or __npgeneric__, as bytes or text, is an
// array or a scalar; bytes beyond an array's shape are cut, as NumPy does.
Value decode(std::span<const uint8_t> message);

// Appends to a string, in the smallest form of each value, as Python's packer does.
class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}
  void map(int64_t entries);
  void list(int64_t items);
  void text(std::string_view value);
  void bytes(std::span<const uint8_t> value);
  void integer(int64_t value);
  void number(double value);  // always float64
  void boolean(bool value);
  void nil();
  // An ndarray as msgpack-numpy packs it, its keys being bytes, or with keys that are texts;
  // `dtype` is NumPy's dtype.str.
  enum class Keys { bytes, texts };
  void array(std::string_view dtype, std::span<const int64_t> shape, std::span<const uint8_t> data,
             Keys keys = Keys::bytes);
  void array(std::span<const double> values, std::span<const int64_t> shape);  // "<f8"
  void value(const Value& any);  // as decode() gave it

 private:
  void scalar(const Value& any);
  std::string& out_;
};

}  // namespace tendon::msgpack
