// Files that are built into the library.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace tendon {

// Bytes of a file of assets/demo, by camera name: "cam_high", "cam_left_wrist", "cam_right_wrist".
std::span<const std::byte> embedded_picture(std::string_view camera);

}  // namespace tendon
