// What the fuzz targets share. Each is one program of libFuzzer: hostile bytes in, and either a
// result or the Error that the parser promises; anything else is a find.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tendon/error.h"

namespace tendon::fuzz {

// libFuzzer reports what ends the program; unlike assert() it is there in every build.
inline void require(bool holds) {
  if (!holds) __builtin_trap();
}

// Whether `read` took its bytes. It may only throw an Error of one of `faults`, whose text a
// terminal and a log can bear.
template <class Read>
bool taken(std::initializer_list<Fault> faults, Read read) {
  constexpr size_t kMessageBytesMax = 64 << 10;
  try {
    read();
    return true;
  } catch (const Error& error) {
    bool expected = false;
    for (const Fault fault : faults) expected |= error.fault() == fault;
    const std::string_view text = error.what();
    require(expected && !text.empty() && text.size() <= kMessageBytesMax);
    return false;
  }
}

// A copy whose end is the end of its block, so that one byte too far is seen.
inline std::shared_ptr<const std::vector<std::byte>> copy_of(const uint8_t* data, size_t size) {
  const auto* first = reinterpret_cast<const std::byte*>(data);
  auto copy = std::make_shared<std::vector<std::byte>>(first, first + size);
  copy->shrink_to_fit();
  return copy;
}

// A file in memory for parsers that open paths.
class MemoryFile {
 public:
  MemoryFile() : file_(memfd_create("fuzz", MFD_CLOEXEC)) { require(file_ >= 0); }
  ~MemoryFile() { ::close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  void fill(std::string_view content) const {
    require(ftruncate(file_, 0) == 0 && pwrite(file_, content.data(), content.size(), 0) ==
                                            static_cast<ssize_t>(content.size()));
  }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

}  // namespace tendon::fuzz
