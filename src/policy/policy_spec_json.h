// PolicySpec as JSON and back: the key "robot" of tendon.json and of --config FILE, what the named
// training configs are made of, and part of converted files. The tokenizer is not part of it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "policy/policy.h"

namespace tendon {

// All of it, statistics included.
nlohmann::json policy_spec_json(const PolicySpec& spec);

// `base` with what `json` says; docs/robots.md lists the keys. Its name brings the
// description of that robot first. Throws Error(Fault::usage) that begins with `where`: unknown
// keys with the nearest, wrong types, lists and texts beyond their limits.
PolicySpec read_policy_spec(const nlohmann::json& json, const std::string& where,
                            PolicySpec base = {});

// The robots of openpi and its named training configurations (assets/openpi.json), as descriptions
// in the form of tendon.json: what a checkpoint with a five-key config.json does not say.

// The value of "robot" for "aloha", "droid", "libero" or "lerobot" (which leaves all as it is).
// Throws Error(Fault::usage) with the nearest name and `where` the other one stood.
const nlohmann::json& robot_json(const std::string& name, const std::string& where = "--robot");
// The same, read; of these four names.
const PolicySpec& robot_named(const std::string& name);

// Throws Error(Fault::usage) with the nearest name, also for pi0-FAST configurations.
nlohmann::json training_config(const std::string& name);
std::vector<std::string> training_config_names();

}  // namespace tendon
