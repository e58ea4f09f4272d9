#include "tensor/resident_memory.h"

#include <fstream>
#include <sstream>

namespace tendon {
namespace {

// Calls `line` with each "Key: N kB"; whether the file could be read.
template <class Line>
bool read_table(const std::string& path, Line&& line) {
  std::ifstream in(path);
  bool any = false;
  for (std::string text; std::getline(in, text);) {
    std::istringstream words(text);
    std::string key;
    int64_t kilobytes = 0;
    if (!(words >> key >> kilobytes)) continue;
    line(key, kilobytes << 10);
    any = true;
  }
  return any;
}

}  // namespace

std::optional<ResidentMemory> resident_memory(const std::string& pid) {
  ResidentMemory memory;
  const bool read =
      read_table("/proc/" + pid + "/smaps_rollup", [&](const std::string& key, int64_t bytes) {
        if (key.starts_with("Private_")) memory.private_bytes += bytes;
        if (key.starts_with("Shared_")) memory.shared_bytes += bytes;
        if (key == "Pss:") memory.fair_bytes = bytes;
      });
  if (!read) return {};
  return memory;
}

std::optional<ResidentMemory> own_memory_by_kind() {
  ResidentMemory memory;
  const bool read = read_table("/proc/self/status", [&](const std::string& key, int64_t bytes) {
    if (key == "RssAnon:") memory.private_bytes += bytes;
    if (key == "RssFile:" || key == "RssShmem:") memory.shared_bytes += bytes;
  });
  if (!read) return {};
  return memory;
}

}  // namespace tendon
