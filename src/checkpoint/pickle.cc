#include "checkpoint/pickle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint/files.h"
#include "tensor/check.h"

namespace tendon {
namespace {

using Bytes = std::span<const std::byte>;

constexpr size_t kPickleBytesMax = 1 << 20, kValuesMax = 1 << 16, kNestingMax = 64;

// Little-endian fields, read in order.
class Fields {
 public:
  Fields(Bytes bytes, std::string file) : rest_(bytes), file_(std::move(file)) {}

  Bytes take(uint64_t count) {
    ensure(count <= rest_.size(), Fault::checkpoint, "{} is cut short", file_);
    const Bytes taken = rest_.first(static_cast<size_t>(count));
    rest_ = rest_.subspan(static_cast<size_t>(count));
    return taken;
  }
  uint64_t number(int bytes) {
    uint64_t value = 0;
    for (int i = 0; const std::byte b : take(static_cast<uint64_t>(bytes)))
      value |= std::to_integer<uint64_t>(b) << (8 * i++);
    return value;
  }
  std::string_view text(uint64_t count) {
    const Bytes taken = take(count);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  std::string_view line() {
    const auto end = std::ranges::find(rest_, std::byte{'\n'}) - rest_.begin();
    const std::string_view taken = text(static_cast<uint64_t>(end));
    take(1);
    return taken;
  }

 private:
  Bytes rest_;
  std::string file_;
};

std::string plain(std::string_view text) {
  std::string ascii(text.substr(0, 4096));
  for (char& c : ascii)
    if (c < ' ' || c > '~') c = '?';
  return ascii;
}

// A value as the pickle builds it: parts are values, too, and may be shared.
struct Value {
  enum class Kind { scalar, list, dict, object };
  Kind kind = Kind::scalar;
  nlohmann::json scalar = {};      // of an object: its class
  std::vector<size_t> parts = {};  // of a dictionary: key, value, key, value, ...
};

// The machine of Python's pickles, for the opcodes that protocols 2 to 4 have for plain values and
// for objects.
class Unpickler {
 public:
  Unpickler(Bytes bytes, std::string file) : in_(bytes, file), file_(std::move(file)) {}

  nlohmann::json read() {
    while (true) {
      const auto op = static_cast<uint8_t>(in_.number(1));
      if (op == '.') break;
      if (!scalar(op) && !container(op) && !memo(op) && !object(op))
        fail(Fault::checkpoint, "{}: opcode {:#04x} of pickle is not read", file_, op);
    }
    return to_json(pop(), 0);
  }

 private:
  using Kind = Value::Kind;

  size_t make(Value value) {
    values_.push_back(std::move(value));
    limit(values_.size());
    return values_.size() - 1;
  }
  void limit(size_t values) const {
    ensure(values <= kValuesMax, Fault::checkpoint, "{}: more than {} values", file_, kValuesMax);
  }
  void push(Value value) { stack_.push_back(make(std::move(value))); }
  void push(nlohmann::json scalar) { push(Value{.scalar = std::move(scalar)}); }
  size_t pop() {
    ensure(stack_.size() > (marks_.empty() ? 0 : marks_.back()), Fault::checkpoint,
           "{}: a pickle that takes more than it has", file_);
    const size_t top = stack_.back();
    stack_.pop_back();
    return top;
  }
  // What was pushed since the last mark, which goes.
  std::vector<size_t> pop_to_mark() {
    ensure(!marks_.empty(), Fault::checkpoint, "{}: a pickle without a mark", file_);
    std::vector<size_t> taken(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()),
                              stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return taken;
  }
  std::vector<size_t> pop(int count) {
    std::vector<size_t> taken(static_cast<size_t>(count));
    for (size_t i = taken.size(); i-- > 0;) taken[i] = pop();
    return taken;
  }
  // More parts for the list, dictionary or object on top.
  void extend(Kind kind, const std::vector<size_t>& more) {
    const size_t top = pop();
    stack_.push_back(top);
    Value& to = values_[top];
    ensure(to.kind == kind || to.kind == Kind::object, Fault::checkpoint,
           "{}: a pickle that fills what holds nothing", file_);
    ensure(kind != Kind::dict || more.size() % 2 == 0, Fault::checkpoint,
           "{}: a pickle with a key without a value", file_);
    if (to.kind == Kind::object) return;
    count(more);
    to.parts.insert(to.parts.end(), more.begin(), more.end());
  }

  bool scalar(uint8_t op) {
    switch (op) {
      case 'N': push(nlohmann::json()); break;
      case 0x88: push(nlohmann::json(true)); break;
      case 0x89: push(nlohmann::json(false)); break;
      case 'K': push(nlohmann::json(in_.number(1))); break;
      case 'M': push(nlohmann::json(in_.number(2))); break;
      case 'J': push(nlohmann::json(static_cast<int32_t>(in_.number(4)))); break;
      case 0x8a: push(long_integer(in_.number(1))); break;
      case 'G': push(std::bit_cast<double>(__builtin_bswap64(in_.number(8)))); break;  // big-endian
      case 'X': push(nlohmann::json(plain(in_.text(in_.number(4))))); break;
      case 0x8c: push(nlohmann::json(plain(in_.text(in_.number(1))))); break;
      case 0x8d: push(nlohmann::json(plain(in_.text(in_.number(8))))); break;
      case 'U':
      case 'C': push(Value{Kind::object, bytes_of(in_.number(1))}); break;
      case 'T':
      case 'B': push(Value{Kind::object, bytes_of(in_.number(4))}); break;
      default: return false;
    }
    return true;
  }

  nlohmann::json bytes_of(uint64_t count) {
    in_.take(count);
    return "bytes";
  }

  nlohmann::json long_integer(uint64_t bytes) {
    ensure(bytes <= 8, Fault::checkpoint, "{}: an integer of {} bytes", file_, bytes);
    if (bytes == 0) return 0;
    const int shift = 64 - 8 * static_cast<int>(bytes);
    return std::bit_cast<int64_t>(in_.number(static_cast<int>(bytes)) << shift) >> shift;
  }

  bool container(uint8_t op) {
    switch (op) {
      case '}': push(Value{Kind::dict}); break;
      case ']':
      case ')':
      case 0x8f: push(Value{Kind::list}); break;
      case '(': marks_.push_back(stack_.size()); break;
      case 't':
      case 0x91: push(Value{Kind::list, {}, count(pop_to_mark())}); break;
      case 0x85: push(Value{Kind::list, {}, count(pop(1))}); break;
      case 0x86: push(Value{Kind::list, {}, count(pop(2))}); break;
      case 0x87: push(Value{Kind::list, {}, count(pop(3))}); break;
      case 'a': extend(Kind::list, pop(1)); break;
      case 'e':
      case 0x90: extend(Kind::list, pop_to_mark()); break;
      case 's': extend(Kind::dict, pop(2)); break;
      case 'u': extend(Kind::dict, pop_to_mark()); break;
      default: return false;
    }
    return true;
  }

  const std::vector<size_t>& count(const std::vector<size_t>& parts) {
    limit(parts_ += parts.size());
    return parts;
  }

  bool memo(uint8_t op) {
    switch (op) {
      case 0x80: in_.number(1); break;  // protocol
      case 0x95: in_.number(8); break;  // frame
      case 'q': remember(in_.number(1)); break;
      case 'r': remember(in_.number(4)); break;
      case 0x94: remember(memo_.size()); break;
      case 'h': recall(in_.number(1)); break;
      case 'j': recall(in_.number(4)); break;
      default: return false;
    }
    return true;
  }

  void remember(uint64_t key) {
    const size_t top = pop();
    stack_.push_back(top);
    memo_[key] = top;
    limit(memo_.size());
  }
  void recall(uint64_t key) {
    const auto found = memo_.find(key);
    ensure(found != memo_.end() && stack_.size() < kValuesMax, Fault::checkpoint,
           "{}: a pickle that recalls what it has not seen", file_);
    stack_.push_back(found->second);
  }

  // Classes and what is made of them: names, nothing else.
  bool object(uint8_t op) {
    switch (op) {
      case 'c': {
        const std::string module = plain(in_.line());
        push(Value{Kind::object, module + "." + plain(in_.line())});
        break;
      }
      case 0x93: {
        const std::vector<size_t> names = pop(2);
        push(Value{Kind::object, name(names[0]) + "." + name(names[1])});
        break;
      }
      case 'R':                                                      // a call
      case 0x81: push(Value{Kind::object, name(pop(2)[0])}); break;  // a new object
      case 0x92: push(Value{Kind::object, name(pop(3)[0])}); break;
      case 'b': extend(Kind::object, pop(1)); break;
      case 'Q':
        pop();
        push(Value{Kind::object, "a tensor"});
        break;
      default: return false;
    }
    return true;
  }

  std::string name(size_t value) const {
    const nlohmann::json& text = values_[value].scalar;
    return text.is_string() ? text.get<std::string>() : "?";
  }

  nlohmann::json to_json(size_t index, size_t depth) {
    ensure(depth < kNestingMax && ++told_ <= kValuesMax, Fault::checkpoint,
           "{}: nested deeper than {} levels, or more than {} values", file_, kNestingMax,
           kValuesMax);
    const Value& v = values_[index];
    if (v.kind == Kind::scalar) return v.scalar;
    if (v.kind == Kind::object) return {{"python", v.scalar}};
    nlohmann::json all = v.kind == Kind::dict ? nlohmann::json::object() : nlohmann::json::array();
    if (v.kind == Kind::list)
      for (const size_t part : v.parts) all.push_back(to_json(part, depth + 1));
    for (size_t i = 0; v.kind == Kind::dict && i < v.parts.size(); i += 2) {
      const Value& key = values_[v.parts[i]];
      if (key.kind == Kind::scalar && key.scalar.is_string())
        all[key.scalar.get<std::string>()] = to_json(v.parts[i + 1], depth + 1);
    }
    return all;
  }

  Fields in_;
  std::string file_;
  std::vector<Value> values_;
  std::vector<size_t> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint64_t, size_t> memo_;
  size_t parts_ = 0, told_ = 0;
};

}  // namespace

nlohmann::json read_pickle(Bytes bytes, const std::string& file) {
  ensure(bytes.size() <= kPickleBytesMax, Fault::checkpoint,
         "{}: a pickle of {} bytes, at most {} are read", file, bytes.size(), kPickleBytesMax);
  return Unpickler(bytes, file).read();
}

Bytes find_pickle(Bytes archive, const std::string& file) {
  constexpr size_t kEndBytes = 22, kCommentMax = 65535, kEntriesMax = 4096;
  constexpr std::string_view kName = "data.pkl";
  // The record at the end, before a comment of unknown length.
  size_t end = archive.size();
  const size_t last = archive.size() - std::min(archive.size(), kEndBytes + kCommentMax);
  for (size_t at = archive.size(); at-- > last && end == archive.size();)
    if (archive.size() - at >= kEndBytes && std::memcmp(archive.data() + at, "PK\x05\x06", 4) == 0)
      end = at;
  ensure(end < archive.size(), Fault::checkpoint, "{} is no archive of torch.save, or is cut short",
         file);
  Fields record(archive.subspan(end + 10), file);
  const uint64_t entries = record.number(2);
  record.number(4);
  const uint64_t begin = record.number(4);
  ensure(entries <= kEntriesMax && begin <= end, Fault::checkpoint,
         "{}: a directory of {} entries from byte {} on", file, entries, begin);
  Fields directory(archive.subspan(static_cast<size_t>(begin), end - static_cast<size_t>(begin)),
                   file);
  for (uint64_t i = 0; i < entries; ++i) {
    ensure(directory.number(4) == 0x02014b50, Fault::checkpoint, "{}: a damaged directory", file);
    directory.take(6);
    const uint64_t method = directory.number(2);
    directory.take(8);
    const uint64_t stored = directory.number(4), size = directory.number(4);
    const uint64_t name_bytes = directory.number(2);
    const uint64_t more_bytes = directory.number(2) + directory.number(2);
    directory.take(8);
    const uint64_t offset = directory.number(4);
    const std::string_view name = directory.text(name_bytes);
    directory.take(more_bytes);
    if (name != kName && !name.ends_with("/data.pkl")) continue;
    ensure(method == 0 && stored == size && offset <= archive.size(), Fault::checkpoint,
           "{}: {} is compressed, which torch.save does not do", file, kName);
    Fields local(archive.subspan(static_cast<size_t>(offset)), file);
    ensure(local.number(4) == 0x04034b50, Fault::checkpoint, "{}: a damaged archive", file);
    local.take(22);
    const uint64_t local_bytes = local.number(2) + local.number(2);
    local.take(local_bytes);
    return local.take(size);
  }
  fail(Fault::checkpoint, "{} holds no {}", file, kName);
}

nlohmann::json read_torch_file(const std::filesystem::path& path) {
  const std::string bytes = read_file(path, 16 << 20);
  return read_pickle(find_pickle(std::as_bytes(std::span(bytes)), path.string()), path.string());
}

}  // namespace tendon
