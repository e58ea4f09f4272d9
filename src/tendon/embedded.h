// Files that are built into the library.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "tendon/tendon.h"

namespace tendon {

// Bytes of a file of assets/aloha, by camera name: "cam_high", "cam_left_wrist", "cam_right_wrist".
std::span<const std::byte> embedded_picture(std::string_view camera);

// A real observation: an ALOHA robot in simulation, three cameras, 14 joints. What benchmarks and
// synthetic models take.
Observation aloha_observation();

}  // namespace tendon
