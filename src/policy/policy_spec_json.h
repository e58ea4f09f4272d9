// PolicySpec as JSON and back, for converted files. The tokenizer is not part of it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "policy/policy.h"

namespace tendon {

nlohmann::json policy_spec_json(const PolicySpec& spec);
// Throws Error(Fault::checkpoint) naming `file` and the field.
PolicySpec read_policy_spec(const nlohmann::json& json, const std::string& file);

}  // namespace tendon
