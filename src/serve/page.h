// The status page: one HTML file inside the library.
#pragma once

#include <string_view>

namespace tendon {

std::string_view status_page();

}  // namespace tendon
