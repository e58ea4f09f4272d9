// What a process keeps in memory, and how much of it others share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace tendon {

// Bytes. Pages of a mapped file are in memory once for all processes that map it.
struct ResidentMemory {
  int64_t private_bytes = 0;  // that no other process maps
  int64_t shared_bytes = 0;   // that another maps as well
  int64_t fair_bytes = 0;     // private, and of each shared page the part of one (Pss)
};

// From /proc/PID/smaps_rollup: the kernel looks at every page, some 20 ms per GB. Nothing where
// it is not there or may not be read. `pid`: a number, or "self".
std::optional<ResidentMemory> resident_memory(const std::string& pid);

// The same at the cost of one small file: what is not of a mapped file counts as private, what is
// as shared, whether or not another process maps it now. fair_bytes is 0.
std::optional<ResidentMemory> own_memory_by_kind();

}  // namespace tendon
