// UTF-8 as RFC 3629 has it.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace tendon {

// Position of the first byte that is not part of valid UTF-8 (overlong forms, surrogates and code
// points above U+10FFFF are not); nothing when all is well.
std::optional<size_t> invalid_utf8(std::string_view text);

// Bytes of the character that begins with this byte of valid UTF-8.
inline size_t character_bytes(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace tendon
