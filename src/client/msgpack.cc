#include "client/msgpack.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "tensor/bf16.h"
#include "tensor/check.h"
#include "tensor/utf8.h"

namespace tendon::msgpack {
namespace {

using Kind = Value::Kind;
static_assert(std::endian::native == std::endian::little);

// As NumPy writes them behind the byte order; in the order of DType. U and S follow with a length.
constexpr std::string_view kNumericTypes[] = {"b1", "i1", "i2", "i4", "i8", "u1",
                                              "u2", "u4", "u8", "f2", "f4", "f8"};
static_assert(std::size(kNumericTypes) == static_cast<size_t>(DType::U));
constexpr int64_t kCharactersMax = 1 << 24;  // of one item of U or S

template <class... Args>
[[noreturn]] void refuse(size_t at, fmt::format_string<Args...> text, Args&&... args) {
  fail(Fault::input, "msgpack at byte {}: {}", at, fmt::format(text, std::forward<Args>(args)...));
}

template <class... Args>
void need(bool ok, size_t at, fmt::format_string<Args...> text, Args&&... args) {
  if (!ok) [[unlikely]]
    refuse(at, text, std::forward<Args>(args)...);
}

double double_of(const Value& integer) {
  return integer.above_int64 ? static_cast<double>(static_cast<uint64_t>(integer.integer))
                             : static_cast<double>(integer.integer);
}

bool is_text(const Value& value) { return value.kind == Kind::text || value.kind == Kind::bytes; }

// Why NumPy's dtype of this first letter is never decoded; empty where that is not so.
std::string_view reason_to_refuse(std::string_view dtype) {
  if (dtype.find(',') != dtype.npos) return "is structured";
  switch (dtype.empty() ? '\0' : dtype[0]) {
    case 'O': return "holds Python objects";
    case 'V': return "holds void or structured items";
    case 'c': return "holds complex numbers";
    default: return {};
  }
}

Array read_dtype(const Value* field, size_t at) {
  need(field != nullptr, at, "an array or scalar has no 'dtype'");
  need(field->kind != Kind::list, at, "'dtype' is a list of fields: structured arrays are refused");
  need(is_text(*field), at, "'dtype' is {}, expected a text such as '<f4'", describe(*field));
  try {
    return array_of_dtype(field->text);
  } catch (const Error& error) {
    refuse(at, "{}", error.what());
  }
}

std::vector<int64_t> read_shape(const Value* field, size_t at) {
  need(field != nullptr, at, "an array has no 'shape'");
  const bool bare = field->kind == Kind::integer;  // NumPy takes 5 for [5]
  need(bare || field->kind == Kind::list, at, "'shape' is {}, expected a list of integers",
       describe(*field));
  const std::span<const Value> sizes = bare ? std::span(field, 1) : std::span(field->list);
  need(std::ssize(sizes) <= kDimsMax, at, "an array has {} dimensions, expected at most {}",
       sizes.size(), kDimsMax);
  std::vector<int64_t> shape;
  shape.reserve(sizes.size());
  for (const Value& size : sizes) {
    need(size.kind == Kind::integer && !size.above_int64, at, "'shape' holds {}, expected integers",
         describe(size));
    need(size.integer >= 0, at, "'shape' holds {}, expected sizes of 0 or more", size.integer);
    shape.push_back(size.integer);
  }
  return shape;
}

Value array_of(const Value& map, size_t at) {
  Value out{.kind = Kind::array, .array = read_dtype(map.find("dtype"), at)};
  Array& array = out.array;
  array.shape = read_shape(map.find("shape"), at);
  const Value* data = map.find("data");
  need(data != nullptr, at, "an array has no 'data'");
  need(data->kind == Kind::bytes, at, "'data' of an array is {}, expected bytes", describe(*data));
  // A dimension of 0 does not excuse the others: NumPy refuses them as well.
  int64_t bytes = array.item_bytes;
  for (const int64_t size : array.shape) {
    need(size == 0 || bytes <= std::numeric_limits<int64_t>::max() / size, at,
         "the shape {} of an array is too big: its bytes overflow 64 bits", array.shape);
    if (size != 0) bytes *= size;
  }
  if (std::ranges::find(array.shape, 0) != array.shape.end()) bytes = 0;
  if (std::ssize(data->text) < bytes)
    refuse(at, "{} needs {} bytes of data, got {}", describe(out), bytes, data->text.size());
  // What is beyond the shape is cut, as NumPy does.
  array.data = {reinterpret_cast<const uint8_t*>(data->text.data()), static_cast<size_t>(bytes)};
  return out;
}

bool in_range(const Value& integer, DType dtype, int64_t bytes) {
  if (dtype == DType::u8) return integer.above_int64 || integer.integer >= 0;
  if (dtype == DType::i8 || integer.above_int64) return !integer.above_int64;
  const bool is_signed = dtype < DType::u1;
  const int64_t high = int64_t{1} << (8 * bytes - (is_signed ? 1 : 0));
  return integer.integer >= (is_signed ? -high : 0) && integer.integer < high;
}

// The value stays as it was sent: the double that NumPy made of a float32, say.
Value scalar_of(const Value& map, size_t at) {
  Array dtype_only = read_dtype(map.find("dtype"), at);
  dtype_only.big_endian = false;
  const Value* data = map.find("data");
  need(data != nullptr, at, "a NumPy scalar has no 'data'");
  Value out = *data;
  out.kind = Kind::scalar;
  out.array = dtype_only;
  const auto expect = [&](bool ok, std::string_view wanted) {
    if (!ok) refuse(at, "'data' of {} is {}, expected {}", describe(out), describe(*data), wanted);
  };
  const bool whole = data->kind == Kind::integer;
  switch (const DType dtype = out.array.dtype) {
    case DType::b1: expect(data->kind == Kind::boolean, "a boolean"); break;
    case DType::U: expect(data->kind == Kind::text, "a text"); break;
    case DType::S: expect(data->kind == Kind::bytes, "bytes"); break;
    case DType::f2:
    case DType::f4:
    case DType::f8:
      expect(whole || data->kind == Kind::number, "a number");
      if (whole) out.number = double_of(*data);
      break;
    default:
      expect(whole, "an integer");
      expect(in_range(*data, dtype, out.array.item_bytes), "one in the dtype's range");
  }
  return out;
}

// Sorted, not compared pair by pair: a peer picks the keys.
void keep_last_of_equal_keys(std::vector<Entry>& map) {
  std::vector<size_t> order(map.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto name = [&](size_t i) { return std::pair(map[i].key, map[i].bytes_key); };
  std::ranges::sort(order, {}, [&](size_t i) { return std::pair(name(i), i); });
  std::vector<bool> dropped(map.size());
  for (size_t i = 1, first = 0; i < order.size(); ++i) {
    if (name(order[i]) != name(order[first])) {
      first = i;
      continue;
    }
    map[order[first]].value = std::move(map[order[i]].value);
    dropped[order[i]] = true;
  }
  size_t i = 0;
  std::erase_if(map, [&](const Entry&) { return dropped[i++]; });
}

class Decoder {
 public:
  explicit Decoder(std::span<const uint8_t> message) : message_(message) {}

  Value only_value() {
    Value value = next(0);
    need(left() == 0, at_, "the message goes on for {} bytes after its value", left());
    return value;
  }

 private:
  uint64_t left() const { return message_.size() - at_; }

  std::string_view take(uint64_t bytes, std::string_view what) {
    need(bytes <= left(), at_, "{} of {} bytes, but only {} are left", what, bytes, left());
    const auto* from = reinterpret_cast<const char*>(message_.data() + at_);
    at_ += bytes;
    return {from, bytes};
  }

  uint64_t big_endian(int bytes) {
    uint64_t value = 0;
    for (const char c : take(static_cast<uint64_t>(bytes), "a field"))
      value = value << 8 | static_cast<uint8_t>(c);
    return value;
  }

  // Before anything is reserved for them. Each takes at least `bytes_each`.
  void admit(uint64_t count, uint64_t bytes_each, int depth, size_t start, std::string_view what) {
    need(depth < kDepthMax, start, "lists and maps are nested deeper than {}", kDepthMax);
    need(count <= left() / bytes_each, start, "{} claims {} items, but only {} bytes are left",
         what, count, left());
    values_ += static_cast<int64_t>(count);
    need(values_ <= kValuesMax, start, "more than {} values in one message", kValuesMax);
  }

  Value text(uint64_t bytes, size_t start) {
    Value value{.kind = Kind::text, .text = take(bytes, "a text")};
    const auto wrong = invalid_utf8(value.text);
    need(!wrong, start, "a text is not valid UTF-8 at its byte {}", wrong.value_or(0));
    return value;
  }

  Value list(uint64_t count, int depth, size_t start) {
    admit(count, 1, depth, start, "a list");
    Value value{.kind = Kind::list};
    value.list.reserve(count);
    for (uint64_t i = 0; i < count; ++i) value.list.push_back(next(depth + 1));
    return value;
  }

  Value map(uint64_t count, int depth, size_t start) {
    admit(count, 2, depth, start, "a map");
    entries_ += static_cast<int64_t>(count);
    need(entries_ <= kMapEntriesMax, start, "more than {} map entries in one message",
         kMapEntriesMax);
    Value value{.kind = Kind::map};
    value.map.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      const size_t key_start = at_;
      const Value key = next(depth + 1);
      need(is_text(key), key_start, "a map key is {}, expected a text or bytes", describe(key));
      value.map.push_back({key.text, key.kind == Kind::bytes, next(depth + 1)});
    }
    keep_last_of_equal_keys(value.map);
    if (value.find("__ndarray__")) return array_of(value, start);
    if (value.find("__npgeneric__")) return scalar_of(value, start);
    return value;
  }

  Value next(int depth) {
    const size_t start = at_;
    const uint64_t tag = big_endian(1);
    if (tag < 0x80 || tag >= 0xe0) return integer(static_cast<int8_t>(tag));
    if (tag < 0x90) return map(tag & 0xf, depth, start);
    if (tag < 0xa0) return list(tag & 0xf, depth, start);
    if (tag < 0xc0) return text(tag & 0x1f, start);
    const auto sized = [&](uint64_t first) { return big_endian(1 << (tag - first)); };
    switch (tag) {
      case 0xc0: return {};
      case 0xc2:
      case 0xc3: return {.kind = Kind::boolean, .boolean = tag == 0xc3};
      case 0xc4:
      case 0xc5:
      case 0xc6: return {.kind = Kind::bytes, .text = take(sized(0xc4), "bytes")};
      case 0xca: return number(std::bit_cast<float>(static_cast<uint32_t>(big_endian(4))));
      case 0xcb: return number(std::bit_cast<double>(big_endian(8)));
      case 0xcc:
      case 0xcd:
      case 0xce:
      case 0xcf: {
        Value value = integer(static_cast<int64_t>(sized(0xcc)));
        value.above_int64 = value.integer < 0;
        return value;
      }
      case 0xd0: return integer(static_cast<int8_t>(big_endian(1)));
      case 0xd1: return integer(static_cast<int16_t>(big_endian(2)));
      case 0xd2: return integer(static_cast<int32_t>(big_endian(4)));
      case 0xd3: return integer(static_cast<int64_t>(big_endian(8)));
      case 0xd9:
      case 0xda:
      case 0xdb: return text(sized(0xd9), start);
      case 0xdc:
      case 0xdd: return list(sized(0xdb), depth, start);
      case 0xde:
      case 0xdf: return map(sized(0xdd), depth, start);
      default:
        refuse(start, "{}", tag == 0xc1 ? "0xc1 is no msgpack" : "extension types are refused");
    }
  }

  static Value integer(int64_t number) { return {.kind = Kind::integer, .integer = number}; }
  static Value number(double number) { return {.kind = Kind::number, .number = number}; }

  std::span<const uint8_t> message_;
  size_t at_ = 0;
  int64_t values_ = 1;  // that were claimed so far
  int64_t entries_ = 0;
};

template <class T>
T load(const uint8_t* from, bool big_endian) {
  uint8_t bytes[sizeof(T)];
  std::memcpy(bytes, from, sizeof(T));
  if (big_endian) std::ranges::reverse(bytes);
  return std::bit_cast<T>(bytes);
}

void append_utf8(std::string& out, uint32_t code) {
  ensure(code < 0x110000 && (code < 0xd800 || code > 0xdfff), Fault::input,
         "a NumPy string holds U+{:04X}, which is no Unicode character", code);
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr uint32_t kLead[] = {0, 0xc0, 0xe0, 0xf0};
  put(kLead[more] | code >> (6 * more));
  for (int i = more - 1; i >= 0; --i) put(0x80 | (code >> (6 * i) & 0x3f));
}

}  // namespace

Array array_of_dtype(std::string_view dtype) {
  const std::string_view shown = dtype.substr(0, 40);
  const std::string_view orders = "<>|=";
  std::string_view name = dtype;
  const bool ordered = !name.empty() && orders.find(name[0]) != orders.npos;
  const bool big_endian = ordered && name[0] == '>';
  if (ordered) name.remove_prefix(1);

  const std::string_view reason = reason_to_refuse(name);
  ensure(reason.empty(), Fault::input, "dtype {:?} {} and is refused", shown, reason);
  Array array;
  if (const auto* found = std::ranges::find(kNumericTypes, name);
      found != std::end(kNumericTypes)) {
    array.dtype = static_cast<DType>(found - std::begin(kNumericTypes));
    array.item_bytes = name[1] - '0';
  } else {
    int64_t characters = 0;
    const char* end = name.data() + name.size();
    const bool fixed_text = name.size() > 1 && (name[0] == 'U' || name[0] == 'S') &&
                            std::from_chars(name.data() + 1, end, characters).ptr == end;
    ensure(fixed_text && characters >= 1 && characters <= kCharactersMax, Fault::input,
           "dtype {:?} is unknown: expected one of {}, U or S with a length", shown,
           fmt::join(kNumericTypes, " "));
    array.dtype = name[0] == 'U' ? DType::U : DType::S;
    array.item_bytes = characters * (array.dtype == DType::U ? 4 : 1);
  }
  array.big_endian = big_endian && array.item_bytes > 1 && array.dtype != DType::S;
  return array;
}

std::optional<double> plain_number(const Value& value) {
  const bool scalar = value.kind == Kind::scalar;
  if (value.kind == Kind::number || (scalar && is_float(value.array.dtype))) return value.number;
  if (value.kind != Kind::integer && (!scalar || is_text(value.array.dtype))) return {};
  if (scalar && value.array.dtype == DType::b1) return {};
  return double_of(value);
}

int64_t Array::size() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

double Array::number(int64_t i) const {
  const uint8_t* from = data.data() + i * item_bytes;
  switch (dtype) {
    case DType::b1: return *from != 0 ? 1 : 0;
    case DType::i1: return load<int8_t>(from, false);
    case DType::i2: return load<int16_t>(from, big_endian);
    case DType::i4: return load<int32_t>(from, big_endian);
    case DType::i8: return static_cast<double>(load<int64_t>(from, big_endian));
    case DType::u1: return *from;
    case DType::u2: return load<uint16_t>(from, big_endian);
    case DType::u4: return load<uint32_t>(from, big_endian);
    case DType::u8: return static_cast<double>(load<uint64_t>(from, big_endian));
    case DType::f2: return from_f16(load<uint16_t>(from, big_endian));
    case DType::f4: return load<float>(from, big_endian);
    case DType::f8: return load<double>(from, big_endian);
    case DType::U:
    case DType::S: break;
  }
  fail(Fault::internal, "an array of {} holds no numbers", dtype_name());
}

std::vector<double> Array::numbers() const {
  std::vector<double> all(static_cast<size_t>(size()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = number(static_cast<int64_t>(i));
  return all;
}

std::string Array::text(int64_t i) const {
  const uint8_t* from = data.data() + i * item_bytes;
  std::string out;
  if (dtype == DType::U) {
    int64_t bytes = item_bytes;
    while (bytes > 0 && load<uint32_t>(from + bytes - 4, big_endian) == 0) bytes -= 4;
    for (int64_t at = 0; at < bytes; at += 4)
      append_utf8(out, load<uint32_t>(from + at, big_endian));
    return out;
  }
  ensure(dtype == DType::S, Fault::internal, "an array of {} holds no texts", dtype_name());
  out.assign(reinterpret_cast<const char*>(from), static_cast<size_t>(item_bytes));
  out.resize(out.find_last_not_of('\0') + 1);
  const auto wrong = invalid_utf8(out);
  ensure(!wrong, Fault::input, "a NumPy string is not valid UTF-8 at its byte {}",
         wrong.value_or(0));
  return out;
}

std::string Array::dtype_name() const {
  const char order = item_bytes == 1 || dtype == DType::S ? '|' : big_endian ? '>' : '<';
  if (!is_text(dtype)) return fmt::format("{}{}", order, kNumericTypes[static_cast<size_t>(dtype)]);
  return dtype == DType::U ? fmt::format("{}U{}", order, item_bytes / 4)
                           : fmt::format("{}S{}", order, item_bytes);
}

const Value* Value::find(std::string_view key) const {
  const auto found = std::ranges::find(map, key, &Entry::key);
  return found == map.end() ? nullptr : &found->value;
}

std::string describe(const Value& value) {
  // In the order of Kind.
  constexpr std::string_view kKinds[] = {"nil",      "a boolean",     "an integer", "a number",
                                         "a text",   "bytes",         "a list",     "a map",
                                         "an array", "a NumPy scalar"};
  std::string text(kKinds[static_cast<size_t>(value.kind)]);
  const bool array = value.kind == Kind::array;
  if (array || value.kind == Kind::scalar) text += fmt::format(" {}", value.array.dtype_name());
  if (array) text += fmt::format(" {}", value.array.shape);
  return text;
}

Value decode(std::span<const uint8_t> message) { return Decoder(message).only_value(); }

}  // namespace tendon::msgpack
