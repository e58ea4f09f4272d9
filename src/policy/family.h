// The two implementations that a policy may have been trained with. They resize pictures, write
// prompts and normalise differently.
#pragma once

#include <string_view>

namespace tendon {

enum class Family { openpi, lerobot };
constexpr std::string_view name(Family family) {
  return family == Family::openpi ? "openpi" : "lerobot";
}

}  // namespace tendon
