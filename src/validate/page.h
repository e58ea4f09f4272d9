// What the HTML pages of this room share: self-contained, light and dark.
#pragma once

#include <string>

namespace tendon {

// From the doctype to the end of the style, to which `style` is added.
std::string html_head(const std::string& title, const std::string& style = {});

}  // namespace tendon
