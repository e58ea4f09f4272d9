// lerobot's policy_preprocessor.json and policy_postprocessor.json with their state files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "policy/statistics.h"

namespace tendon {

struct Processors {
  std::map<std::string, std::string> rename;  // observation keys, "observation.images." removed
  std::optional<int64_t> tokens_max;
  bool writes_state = false;  // pi05_prepare_state_tokenizer_processor_step is there
  std::optional<bool> state_in_prompt;
  bool relative = false;            // actions are relative to the state
  bool relative_step = false;       // there is a step for it, as lerobot has written since 0.5.1
  std::string visual = "IDENTITY";  // norm_map of VISUAL; where another one has no statistics
  std::vector<std::string> relative_excluded, action_names;
  Normalizer state, action;
};

struct ProcessorNeeds {
  int64_t state_dim = 0, action_dim = 0;
  bool statistics = true;  // false: identity was asked for
};

// Reads both files of a lerobot checkpoint, whatever the order of their steps. Throws
// Error(Fault::checkpoint): missing files, a step nobody knows (with the nearest), a missing state
// file, statistics that are missing, not finite or of another size, pictures with a normalisation
// of their own, actions made relative that are not made absolute again.
Processors read_processors(const std::filesystem::path& folder, const ProcessorNeeds& needs);

// "observation.images.top" and "observation/top" are "top".
std::string_view without_prefix(std::string_view key);
inline std::string camera_name(const std::string& key) { return std::string(without_prefix(key)); }

}  // namespace tendon
