#include "checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "checkpoint/safetensors_header.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr uint64_t kHeaderBytesMax = 16 << 20;

// A read-only mapping of a whole file.
struct Mapping {
  const std::byte* data = nullptr;
  size_t size = 0;
  ~Mapping() {
    if (data) munmap(const_cast<std::byte*>(data), size);
  }
};

std::shared_ptr<const Mapping> map_file(const std::filesystem::path& path) {
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
  auto mapping = std::make_shared<Mapping>();
  mapping->data = static_cast<const std::byte*>(data);
  mapping->size = size;
  return mapping;
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

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  if (const auto inside = embedded_file(path)) return from_bytes(nullptr, *inside, path.string());
  const auto mapping = map_file(path);
  auto file = from_bytes(mapping, {mapping->data, mapping->size}, path.string());
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
  if (!nameless)
    file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
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
