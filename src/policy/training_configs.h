// The robots of openpi and its named training configurations (assets/openpi.json), as descriptions
// in the form of tendon.json: what a checkpoint with a five-key config.json does not say.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "policy/policy.h"

namespace tendon {

// The value of "robot" for "aloha", "droid", "libero" or "lerobot" (which leaves all as it is).
// Throws Error(Fault::usage) with the nearest name and `where` the other one stood.
const nlohmann::json& robot_json(const std::string& name, const std::string& where = "--robot");
// The same, read; of these four names.
const PolicySpec& robot_named(const std::string& name);

// Throws Error(Fault::usage) with the nearest name, also for pi0-FAST configurations.
nlohmann::json training_config(const std::string& name);
std::vector<std::string> training_config_names();

}  // namespace tendon
