// PolicySpec as JSON and back: the key "robot" of tendon.json and of --config FILE, what the named
// training configs are made of, and part of converted files. The tokenizer is not part of it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "policy/policy.h"

namespace tendon {

// All of it, statistics included.
nlohmann::json policy_spec_json(const PolicySpec& spec);

// `base` with what `json` says; docs/robots.md lists the keys. Its name brings the
// description of that robot first. Throws Error(Fault::usage) that begins with `where`: unknown
// keys with the nearest, wrong types, lists and texts beyond their limits.
PolicySpec read_policy_spec(const nlohmann::json& json, const std::string& where,
                            PolicySpec base = {});

}  // namespace tendon
