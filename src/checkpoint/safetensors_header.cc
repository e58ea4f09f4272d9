#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "tensor/check.h"

namespace tendon {
namespace {

constexpr size_t kTensorsMax = 65536, kNameBytesMax = 512;

// Told by the parser what it reads, one token at a time: duplicate keys, sizes and nesting are
// refused before anything is built from them.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}
  SafetensorsHeader header;

  bool start_object(size_t) override {
    if (place_ == Place::file) return enter(Place::names);
    if (place_ != Place::names) return unexpected("an object");
    if (name_ == "__metadata__") return enter(Place::metadata);
    if (header.tensors.size() == kTensorsMax) refuse("more than {} tensors", kTensorsMax);
    header.tensors.push_back({.name = name_});
    keys_.clear();
    return enter(Place::tensor);
  }

  bool key(std::string& key) override {
    if (key.size() > kNameBytesMax) refuse("a name of more than {} bytes", kNameBytesMax);
    if (place_ == Place::metadata) {
      if (header.metadata.contains(key)) refuse("'{}' stands twice in __metadata__", key);
      key_ = key;
    } else if (place_ == Place::tensor) {
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        refuse("unknown key '{}' in {}", key, name_);
      if (!keys_.insert(key).second) refuse("'{}' stands twice in {}", key, name_);
      key_ = key;
    } else {
      // Names are printed: none shall clear a terminal or look like a line of a log.
      if (std::ranges::any_of(key, [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; }))
        refuse("a control character in the name of a tensor");
      if (!names_.insert(key).second) refuse("'{}' stands twice", key);
      name_ = key;
      key_.clear();
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor && keys_.size() != 3)
      refuse("{} needs dtype, shape and data_offsets", name_);
    return enter(place_ == Place::names ? Place::file : Place::names);
  }

  bool start_array(size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") return unexpected("a list");
    numbers_.clear();
    return enter(Place::numbers);
  }

  bool number_unsigned(uint64_t number) override {
    if (place_ != Place::numbers) return unexpected("a number");
    if (numbers_.size() == Shape::kRankMax)
      refuse("more than {} numbers in {} of {}", Shape::kRankMax, key_, name_);
    numbers_.push_back(number);
    return true;
  }

  bool end_array() override {
    TensorEntry& t = header.tensors.back();
    if (key_ == "shape") {
      t.shape = shape();
    } else {
      if (numbers_.size() != 2) refuse("data_offsets of {} needs two numbers", name_);
      t.begin = numbers_[0];
      t.end = numbers_[1];
    }
    return enter(Place::tensor);
  }

  bool string(std::string& text) override {
    if (place_ == Place::metadata) {
      header.metadata.emplace(key_, std::move(text));
      return true;
    }
    if (place_ != Place::tensor || key_ != "dtype") return unexpected("a text");
    for (int i = 0; i <= static_cast<int>(DType::boolean); ++i)
      if (name(static_cast<DType>(i)) == text) {
        header.tensors.back().dtype = static_cast<DType>(i);
        return true;
      }
    refuse("unknown type '{}' of {}", text.substr(0, 16), name_);
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("true or false"); }
  bool number_integer(int64_t) override { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) override {
    return unexpected("a number that is no integer of 64 bits");
  }
  bool binary(binary_t&) override { return unexpected("bytes"); }

  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception& e) override {
    const std::string why = e.what();  // ends with what was read, which may be anything
    refuse("byte {}: {}", byte, why.substr(0, std::min(why.find("; last read"), size_t{200})));
  }

 private:
  enum class Place { file, names, metadata, tensor, numbers };

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> what, Args&&... args) const {
    fail(Fault::checkpoint, "{}: safetensors header: {}", file_,
         fmt::format(what, std::forward<Args>(args)...));
  }

  [[noreturn]] bool unexpected(std::string_view what) const {
    refuse("{}{}{} holds {}, which does not belong there", name_, key_.empty() ? "" : ": ", key_,
           what);
  }

  bool enter(Place place) {
    place_ = place;
    return true;
  }

  Shape shape() const {
    std::vector<int64_t> dims;
    int64_t bytes = 8;  // of the widest type: the product must not overflow either
    for (const uint64_t d : numbers_) {
      if (d < 1) refuse("{} has a dimension of 0; at least 1 is needed", name_);
      if (__builtin_mul_overflow(bytes, d, &bytes))
        refuse("the dimensions of {} overflow 64 bits", name_);
      dims.push_back(static_cast<int64_t>(d));
    }
    return Shape(dims);
  }

  const std::string& file_;
  Place place_ = Place::file;
  std::string name_, key_;  // the tensor that is read, and its field or that of the metadata
  std::set<std::string> names_, keys_;
  std::vector<uint64_t> numbers_;
};

// The parser holds a text several times before it tells of it: long names, and texts without an
// end, are refused before.
void check_texts(std::string_view json, const std::string& file) {
  for (size_t begin = json.find('"'); begin != json.npos; begin = json.find('"', begin)) {
    size_t end = begin + 1;
    while (end < json.size() && json[end] != '"') end += json[end] == '\\' ? 2 : 1;
    ensure(end < json.size(), Fault::checkpoint,
           "{}: safetensors header: the text at byte {} has no end", file, begin);
    const size_t next = json.find_first_not_of(" \t\r\n", end + 1);
    const bool is_name = next != json.npos && json[next] == ':';
    ensure(!is_name || end - begin <= 6 * kNameBytesMax + 1, Fault::checkpoint,
           "{}: safetensors header: the name at byte {} has more than {} bytes", file, begin,
           kNameBytesMax);
    begin = end + 1;
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file) {
  ensure(json.starts_with('{'), Fault::checkpoint,
         "{}: the safetensors header does not begin with '{{'; is it a safetensors file?", file);
  // The parser would take a zero byte for the end.
  ensure(json.find('\0') == std::string_view::npos, Fault::checkpoint,
         "{}: safetensors header: byte {} is zero", file, json.find('\0'));
  check_texts(json, file);
  HeaderReader reader(file);
  nlohmann::json::sax_parse(json, &reader);
  return std::move(reader.header);
}

}  // namespace tendon
