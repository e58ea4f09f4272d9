// The files of checkpoints: those on disk, and those inside the library, whose paths begin with
// "embedded:" ("embedded:pi0/config.json").
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "tendon/error.h"

namespace tendon {

bool is_file(const std::filesystem::path& path);  // a regular file, or one inside the library

// The bytes of a file inside the library; nothing for every other path.
std::optional<std::span<const std::byte>> embedded_file(const std::filesystem::path& path);

// Throws Error(fault) when it cannot be read or has more than bytes_max bytes.
std::string read_file(const std::filesystem::path& path, uint64_t bytes_max,
                      Fault fault = Fault::checkpoint);

}  // namespace tendon
