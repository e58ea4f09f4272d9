#include "checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/files.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr uint64_t kHeaderBytesMax = 16 << 20;
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

struct Mapping {
  std::shared_ptr<const void> owner;
  std::span<const std::byte> bytes;
};

// Of a whole file, read-only.
Mapping map_file(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ensure(file >= 0, Fault::checkpoint, "cannot open {}: {}", path.string(), std::strerror(errno));
  struct stat status {};
  const bool regular = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = regular ? static_cast<size_t>(status.st_size) : 0;
  void* data = size == 0 ? MAP_FAILED : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  const int error = errno;
  close(file);
  ensure(regular, Fault::checkpoint, "{} is not a regular file", path.string());
  ensure(size >= 8, Fault::checkpoint, "{} has {} bytes; a safetensors file has at least 8",
         path.string(), size);
  ensure(data != MAP_FAILED, error == ENOMEM ? Fault::memory : Fault::checkpoint,
         "cannot map {}: {}", path.string(), std::strerror(error));
  return {{data, [size](void* begin) { munmap(begin, size); }},
          {static_cast<const std::byte*>(data), size}};
}

// Offsets must be in order, without holes or overlaps, and cover the buffer: what is left of the
// file behind `head_bytes`.
void check_cover(std::vector<TensorEntry>& tensors, uint64_t head_bytes, uint64_t buffer_bytes,
                 const std::string& file) {
  std::ranges::stable_sort(tensors, {}, [](const TensorEntry& e) { return e.begin; });
  uint64_t end = 0;
  for (const TensorEntry& e : tensors) {
    const auto bytes = static_cast<uint64_t>(e.shape.count() * byte_size(e.dtype));
    ensure(e.begin == end, Fault::checkpoint, "{}: {} begins at byte {}, expected {} ({})", file,
           e.name, e.begin, end, e.begin > end ? "a hole" : "an overlap");
    ensure(e.end >= e.begin && e.end - e.begin == bytes, Fault::checkpoint,
           "{}: {} {} of {} takes {} bytes, its offsets {} to {} do not fit", file, e.name,
           to_string(e.shape), name(e.dtype), bytes, e.begin, e.end);
    end = e.end;
  }
  ensure(end <= buffer_bytes, Fault::checkpoint,
         "{} is cut short: it has {} bytes, its header speaks of {}; copy it again", file,
         head_bytes + buffer_bytes, head_bytes + end);
  ensure(end == buffer_bytes, Fault::checkpoint,
         "{} is too long: it has {} bytes, its header speaks of {}", file,
         head_bytes + buffer_bytes, head_bytes + end);
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

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  if (const auto inside = embedded_file(path)) return from_bytes(nullptr, *inside, path.string());
  const Mapping mapping = map_file(path);
  auto file = from_bytes(mapping.owner, mapping.bytes, path.string());
  for (HostTensor& t : file->tensors_) t.mapped = true;
  return file;
}

std::shared_ptr<SafetensorsFile> SafetensorsFile::from_bytes(std::shared_ptr<const void> owner,
                                                             std::span<const std::byte> bytes,
                                                             std::string name) {
  ensure(bytes.size() >= 8, Fault::checkpoint, "{} has {} bytes; a safetensors file has at least 8",
         name, bytes.size());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  ensure(header_bytes <= kHeaderBytesMax, Fault::checkpoint,
         "{}: a header of {} bytes, at most {} are read; is it a safetensors file?", name,
         header_bytes, kHeaderBytesMax);
  ensure(header_bytes <= bytes.size() - 8, Fault::checkpoint,
         "{} is cut short: it has {} bytes, its header alone needs {}; copy it again", name,
         bytes.size(), 8 + header_bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  SafetensorsHeader header = parse_safetensors_header(text, name);
  const std::span<const std::byte> buffer = bytes.subspan(8 + header_bytes);
  check_cover(header.tensors, 8 + header_bytes, buffer.size(), name);

  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->name_ = std::move(name);
  file->metadata_ = std::move(header.metadata);
  for (const TensorEntry& e : header.tensors) {
    file->index_[e.name] = file->tensors_.size();
    file->tensors_.push_back(
        {e.name, e.dtype, e.shape, buffer.subspan(e.begin, e.end - e.begin), owner});
  }
  return file;
}

const HostTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t end = 0;
  for (const HostTensor& t : tensors) {
    const auto dims = t.shape.dims();
    header[t.name] = {{"dtype", name(t.dtype)},
                      {"shape", std::vector<int64_t>(dims.begin(), dims.end())},
                      {"data_offsets", {end, end + t.bytes.size()}}};
    end += t.bytes.size();
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');  // data begins at a cache line
  const uint64_t length = text.size();
  const std::string temporary = path.string() + ".part";
  // Without a name until it is complete, where the file system can: whatever ends this program,
  // nothing half-written stays.
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  int file = ::open(folder.c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0644);
  const bool nameless = file >= 0;
  if (!nameless) file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  ensure(file >= 0, Fault::checkpoint, "cannot write {}: {}", temporary, std::strerror(errno));
  bool ok = true;
  const auto put = [&](const void* data, size_t size) {
    for (size_t done = 0; ok && done < size;) {
      const ssize_t n = ::write(file, static_cast<const char*>(data) + done, size - done);
      ok = n > 0;
      done += ok ? static_cast<size_t>(n) : 0;
    }
  };
  put(&length, sizeof length);
  put(text.data(), text.size());
  for (const HostTensor& t : tensors) put(t.bytes.data(), t.bytes.size());
  ok = ok && fsync(file) == 0;
  bool named = false;  // `path` itself: only a file that lies there already needs the rename
  if (ok && nameless) {
    const std::string itself = "/proc/self/fd/" + std::to_string(file);
    const auto link_to = [&](const std::string& to) {
      return ::linkat(AT_FDCWD, itself.c_str(), AT_FDCWD, to.c_str(), AT_SYMLINK_FOLLOW) == 0;
    };
    named = link_to(path.string());
    if (!named) std::remove(temporary.c_str());
    ok = named || link_to(temporary);
  }
  const int error = errno;
  close(file);
  ok = ok && (named || std::rename(temporary.c_str(), path.c_str()) == 0);
  if (!ok) std::remove(temporary.c_str());
  ensure(ok, Fault::checkpoint, "cannot write {}: {}", path.string(), std::strerror(error));
}

}  // namespace tendon
