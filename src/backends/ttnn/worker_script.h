// The Python sources that are built into the library.
#pragma once

#include <string_view>

namespace tendon::tt {

std::string_view worker_script();
std::string_view worker_files_script();
std::string_view worker_keeper_script();

}  // namespace tendon::tt
