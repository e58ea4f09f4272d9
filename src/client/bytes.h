// The bytes of a message, owned and seen.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace tendon {

using Bytes = std::vector<uint8_t>;

inline std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace tendon
