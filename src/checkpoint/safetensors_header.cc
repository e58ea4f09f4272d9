#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <set>

#include "tensor/check.h"

namespace tendon {
namespace {

constexpr size_t kTensorsMax = 65536, kNameBytesMax = 512, kMetadataBytesMax = 16 << 20;

// A cursor over the header. Every method either consumes what it names or fails with the position.
class Reader {
 public:
  Reader(std::string_view text, const std::string& file) : text_(text), file_(file) {}

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> what, Args&&... args) const {
    fail(Fault::checkpoint, "{}: safetensors header, byte {}: {}", file_, at_,
         fmt::format(what, std::forward<Args>(args)...));
  }

  char peek() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string::npos)
      ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool take(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) refuse("expected '{}'", c);
  }

  void expect_end() {
    if (peek() != '\0' || at_ < text_.size()) refuse("something follows the header object");
  }

  std::string string(size_t bytes_max) {
    expect('"');
    std::string value;
    while (true) {
      if (at_ >= text_.size()) refuse("the string has no end");
      const auto c = static_cast<unsigned char>(text_[at_++]);
      if (c == '"') break;
      if (c < 0x20) refuse("a control character inside a string");
      if (c == '\\') {
        escape(value);
      } else {
        value += static_cast<char>(c);
      }
      if (value.size() > bytes_max) refuse("a string of more than {} bytes", bytes_max);
    }
    ensure_utf8(value);
    return value;
  }

  // A non-negative integer without sign, fraction or exponent.
  uint64_t integer() {
    peek();
    const size_t first = at_;
    uint64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      const auto digit = static_cast<uint64_t>(text_[at_] - '0');
      if (value > (UINT64_MAX - digit) / 10) refuse("a number of more than 64 bits");
      value = value * 10 + digit;
      ++at_;
    }
    if (at_ == first) refuse("expected a non-negative integer");
    if (text_[first] == '0' && at_ > first + 1) refuse("a number with a leading zero");
    return value;
  }

  // Calls item() for each element between `open` and `close`.
  template <class Item>
  void list(char open, char close, const Item& item) {
    expect(open);
    if (take(close)) return;
    do item();
    while (take(','));
    expect(close);
  }

 private:
  uint32_t hex4() {
    if (at_ + 4 > text_.size()) refuse("a cut \\u escape");
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const bool digit = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f';
      if (!digit && !lower && !(c >= 'A' && c <= 'F')) refuse("'{}' in a \\u escape", c);
      value = value * 16 + static_cast<uint32_t>(digit ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  void escape(std::string& to) {
    if (at_ >= text_.size()) refuse("the string has no end");
    const char c = text_[at_++];
    constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const size_t simple = kFrom.find(c);
    if (simple != std::string_view::npos) {
      to += kTo[simple];
      return;
    }
    if (c != 'u') refuse("an unknown escape '\\{}'", c);
    uint32_t point = hex4();
    if (point >= 0xD800 && point < 0xDC00) {
      if (text_.substr(at_, 2) != "\\u") refuse("half of a surrogate pair");
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) refuse("half of a surrogate pair");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (point >= 0xDC00 && point <= 0xDFFF) {
      refuse("half of a surrogate pair");
    }
    append_utf8(to, point);
  }

  static void append_utf8(std::string& to, uint32_t point) {
    const auto tail = [&](int shift) { to += static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
    if (point < 0x80) {
      to += static_cast<char>(point);
    } else if (point < 0x800) {
      to += static_cast<char>(0xC0 | (point >> 6));
      tail(0);
    } else if (point < 0x10000) {
      to += static_cast<char>(0xE0 | (point >> 12));
      tail(6), tail(0);
    } else {
      to += static_cast<char>(0xF0 | (point >> 18));
      tail(12), tail(6), tail(0);
    }
  }

  void ensure_utf8(const std::string& s) const {
    for (size_t i = 0; i < s.size();) {
      const auto c = static_cast<unsigned char>(s[i]);
      const int more = c < 0x80                ? 0
                       : c >= 0xC2 && c < 0xE0 ? 1
                       : c >= 0xE0 && c < 0xF0 ? 2
                       : c >= 0xF0 && c < 0xF5 ? 3
                                               : -1;
      if (more < 0 || i + static_cast<size_t>(more) >= s.size() + (more == 0 ? 1 : 0))
        refuse("invalid UTF-8 in a string");
      for (int k = 1; k <= more; ++k)
        if ((static_cast<unsigned char>(s[i + static_cast<size_t>(k)]) & 0xC0) != 0x80)
          refuse("invalid UTF-8 in a string");
      i += static_cast<size_t>(more) + 1;
    }
  }

  std::string_view text_;
  const std::string& file_;
  size_t at_ = 0;
};

DType dtype(Reader& in) {
  const std::string text = in.string(16);
  for (int i = 0; i <= static_cast<int>(DType::boolean); ++i)
    if (name(static_cast<DType>(i)) == text) return static_cast<DType>(i);
  in.refuse("unknown type '{}'", text);
}

Shape shape(Reader& in) {
  std::vector<int64_t> dims;
  in.list('[', ']', [&] {
    const uint64_t d = in.integer();
    if (dims.size() == Shape::kRankMax) in.refuse("more than {} dimensions", Shape::kRankMax);
    if (d < 1 || d > INT64_MAX) in.refuse("a dimension of {}; at least 1 is needed", d);
    dims.push_back(static_cast<int64_t>(d));
  });
  int64_t count = 8;  // bytes of the widest type: the product must not overflow either
  for (const int64_t d : dims)
    if (__builtin_mul_overflow(count, d, &count)) in.refuse("the dimensions overflow 64 bits");
  return Shape(dims);
}

TensorEntry entry(Reader& in, std::string name) {
  TensorEntry e{std::move(name)};
  std::set<std::string> seen;
  in.list('{', '}', [&] {
    const std::string key = in.string(64);
    if (!seen.insert(key).second) in.refuse("'{}' stands twice in {}", key, e.name);
    in.expect(':');
    if (key == "dtype") {
      e.dtype = dtype(in);
    } else if (key == "shape") {
      e.shape = shape(in);
    } else if (key == "data_offsets") {
      std::vector<uint64_t> offsets;
      in.list('[', ']', [&] {
        if (offsets.size() == 2) in.refuse("more than two data_offsets");
        offsets.push_back(in.integer());
      });
      if (offsets.size() != 2) in.refuse("data_offsets needs two numbers");
      e.begin = offsets[0];
      e.end = offsets[1];
    } else {
      in.refuse("unknown key '{}' in {}", key, e.name);
    }
  });
  if (seen.size() != 3) in.refuse("{} needs dtype, shape and data_offsets", e.name);
  return e;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file) {
  ensure(json.starts_with('{'), Fault::checkpoint,
         "{}: the safetensors header does not begin with '{{'; is it a safetensors file?", file);
  SafetensorsHeader header;
  Reader in(json, file);
  std::set<std::string> names;
  in.list('{', '}', [&] {
    std::string name = in.string(kNameBytesMax);
    // Names are printed: none shall clear a terminal or look like a line of a log.
    if (std::ranges::any_of(name, [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; }))
      in.refuse("a control character in the name of a tensor");
    if (!names.insert(name).second) in.refuse("'{}' stands twice", name);
    in.expect(':');
    if (name == "__metadata__") {
      in.list('{', '}', [&] {
        const std::string key = in.string(kNameBytesMax);
        in.expect(':');
        if (!header.metadata.emplace(key, in.string(kMetadataBytesMax)).second)
          in.refuse("'{}' stands twice in __metadata__", key);
      });
      return;
    }
    if (header.tensors.size() == kTensorsMax) in.refuse("more than {} tensors", kTensorsMax);
    header.tensors.push_back(entry(in, std::move(name)));
  });
  in.expect_end();
  return header;
}

}  // namespace tendon
