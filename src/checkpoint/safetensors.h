// The safetensors format: 8 bytes of header length, a JSON header, raw little-endian tensors.
// The file is mapped and checked completely when it is opened; nothing in it is trusted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tensor/tensor.h"

namespace tendon {

class SafetensorsFile {
 public:
  // Throws Error(Fault::checkpoint) naming the file, what was expected and what was found: header
  // of at most 16 MB beginning with '{', at most 65,536 tensors with unique, printable names of at
  // most 512 bytes, at most 8 dimensions of at least 1, known types, offsets in order without holes
  // or overlaps that cover the buffer to the last byte.
  static std::shared_ptr<const SafetensorsFile> open(const std::filesystem::path& path);

  // The same checks on bytes in memory, kept alive by `owner`.
  static std::shared_ptr<SafetensorsFile> from_bytes(std::shared_ptr<const void> owner,
                                                     std::span<const std::byte> bytes,
                                                     std::string name);

  const std::vector<HostTensor>& tensors() const { return tensors_; }  // in file order
  const HostTensor* find(std::string_view name) const;                 // null: absent
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& name() const { return name_; }

 private:
  SafetensorsFile() = default;
  std::string name_;
  std::vector<HostTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// The JSON header as plain data.
struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes, from the end of the header
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of the header
  std::map<std::string, std::string> metadata;
};

// Throws Error(Fault::checkpoint) naming the tensor or the byte. `file` is for messages.
SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file);

// Written to a temporary name, synced, renamed. Throws Error(Fault::checkpoint) when that fails.
void write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace tendon
