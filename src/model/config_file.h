// Sizes from a JSON file (`--config FILE`, or tendon.json beside a checkpoint).
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "model/config.h"

namespace tendon {

// Keys: policy ("pi0" or "pi05"), vision {image, patch, width, heads, mlp, depth}, vlm {width, mlp,
// heads, kv_heads, head_dim, depth, vocab}, expert {the same without vocab}, action_dim, state_dim,
// horizon, num_steps, max_token_len, cameras, min_period, max_period. What is missing keeps the
// value of `base` (or of the full-size model); "robot" is another reader's. An unknown key is an
// Error(Fault::usage) with the nearest known one, unless the file says "format": "tendon-golden-1",
// which has more keys.
Config read_config(const nlohmann::json& json, const std::string& file,
                   const std::optional<Config>& base = {});

// All of it, in the same form.
nlohmann::json config_json(const Config& config);

}  // namespace tendon
