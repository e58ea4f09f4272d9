#include "tensor/utf8.h"

namespace tendon {

std::optional<size_t> invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) {
      ++at;
      continue;
    }
    if (lead < 0xC2 || lead > 0xF4) return at;
    const size_t size = character_bytes(text[at]);
    if (text.size() - at < size) return at;
    // The second byte's range excludes overlong forms, surrogates and what is above U+10FFFF.
    const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < low || byte(1) > high) return at;
    for (size_t i = 2; i < size; ++i)
      if ((byte(i) & 0xC0) != 0x80) return at;
    at += size;
  }
  return std::nullopt;
}

}  // namespace tendon
