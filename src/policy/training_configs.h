// The named training configurations of openpi that a checkpoint may belong to: what its five-key
// config.json does not say.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "policy/robots.h"

namespace tendon {

struct TrainingConfig {
  std::string name;
  PolicyType policy = PolicyType::pi0;
  int64_t horizon = 50, tokens_max = 48;
  std::string asset;  // folder below assets/
  Robot robot = Robot::aloha;
  std::vector<bool> relative;  // action dims that are relative to the state
  bool state_in_prompt = false;
  std::optional<std::string> default_prompt;
  int64_t action_dim = 32;
};

// Throws Error(Fault::usage) with the nearest name, also for pi0-FAST configurations.
TrainingConfig training_config(const std::string& name);

std::vector<std::string> training_config_names();

}  // namespace tendon
