// Surroundings as JSON and back, for converted files. The tokenizer is not part of it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "policy/policy.h"

namespace tendon {

nlohmann::json surroundings_json(const Surroundings& around);
// Throws Error(Fault::checkpoint) naming `file` and the field.
Surroundings read_surroundings(const nlohmann::json& json, const std::string& file);

}  // namespace tendon
