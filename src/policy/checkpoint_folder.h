// The checkpoint folders that can be opened: lerobot's save_pretrained and openpi's PyTorch
// conversion.
#pragma once

#include <filesystem>
#include <optional>

#include "policy/open_model.h"
#include "policy/training_configs.h"

namespace tendon {

// What `--config` said: sizes from a JSON file, or an openpi training config.
struct GivenConfig {
  nlohmann::json sizes;  // null: none
  std::string file;      // where `sizes` came from
  std::optional<TrainingConfig> training;
};

// Fills layout, config, weights, policy spec (but the tokenizer) and notes.
OpenedModel open_folder(const std::filesystem::path& folder, const OpenOptions& options,
                        const GivenConfig& given);

// One file, or those that an index names. Throws Error(Fault::checkpoint), also when an adapter
// lies beside them or alone.
std::vector<std::filesystem::path> weight_files(const std::filesystem::path& folder);

// The robot's cameras, dimensions and transforms, as openpi's training config or --robot says.
void set_robot(PolicySpec& spec, Robot robot);
void apply_training_config(OpenedModel& model, const TrainingConfig& training);

// "action_0", ... where nobody has named them.
std::vector<std::string> numbered_actions(int64_t dim);

}  // namespace tendon
