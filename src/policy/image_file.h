// Image files of the command line: PNG, JPEG and PPM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "tendon/types.h"

namespace tendon {

// Three channels of 8 bits; at most 64 MB of file and 8,192 pixels per side. Throws
// Error(Fault::input) naming the file for anything else, also for grey or transparent pictures.
Image load_image(const std::string& path);
// Of a peer's file at most `pixels_max` are reserved for.
Image decode_image(std::span<const std::byte> file, const std::string& name,
                   int64_t pixels_max = INT64_MAX);

}  // namespace tendon
