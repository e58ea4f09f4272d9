// Text in pages and drawings.
#pragma once

#include <string>
#include <string_view>

namespace tendon {

// What text may be in XML and HTML, also between double quotes: marks as entities, control
// characters as spaces.
inline std::string xml_text(std::string_view text) {
  std::string xml;
  for (const char c : text) switch (c) {
      case '<': xml += "&lt;"; break;
      case '>': xml += "&gt;"; break;
      case '&': xml += "&amp;"; break;
      case '"': xml += "&quot;"; break;
      default: xml += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
  return xml;
}

}  // namespace tendon
