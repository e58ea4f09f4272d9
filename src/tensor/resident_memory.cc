#include "tensor/resident_memory.h"

#include <fstream>
#include <sstream>

namespace tendon {
namespace {

// The sums of a file's lines "Key: N kB"; nothing where there is none.
std::optional<ResidentMemory> sums_of(const std::string& path) {
  std::ifstream in(path);
  std::optional<ResidentMemory> memory;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string key;
    int64_t kilobytes = 0;
    if (!(words >> key >> kilobytes)) continue;
    if (!memory) memory.emplace();
    const int64_t bytes = kilobytes << 10;
    if (key.starts_with("Private_") || key == "RssAnon:") memory->private_bytes += bytes;
    if (key.starts_with("Shared_") || key == "RssFile:" || key == "RssShmem:")
      memory->shared_bytes += bytes;
    if (key == "Pss:") memory->fair_bytes = bytes;
  }
  return memory;
}

}  // namespace

std::optional<ResidentMemory> resident_memory(const std::string& pid) {
  return sums_of("/proc/" + pid + "/smaps_rollup");
}

std::optional<ResidentMemory> own_memory_by_kind() { return sums_of("/proc/self/status"); }

}  // namespace tendon
