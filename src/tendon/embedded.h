// Files that are built into the library.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tendon/tendon.h"

namespace tendon {

// Bytes of a file of assets/aloha, by camera name: "cam_high", "cam_left_wrist", "cam_right_wrist".
std::span<const std::byte> embedded_picture(std::string_view camera);

// A real observation: an ALOHA robot in simulation, three cameras, 14 joints.
Observation aloha_observation();

// What comes with a model: demo_observation() with the demos, aloha_observation() with synthetic
// ones; nothing with any other.
std::optional<Observation> observation_of(const std::string& model);

}  // namespace tendon
