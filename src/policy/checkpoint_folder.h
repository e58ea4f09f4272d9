// The checkpoint folders that can be opened: lerobot's save_pretrained and openpi's PyTorch
// conversion.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "policy/open_model.h"

namespace tendon {

// What somebody says of a model besides its checkpoint: sizes and, as "robot", a policy spec.
struct Description {
  nlohmann::json json;
  std::string file;  // where it came from
  // By name, of openpi's training configs: for openpi's checkpoints, and not for others.
  bool named = false;
};

// --robot, a named --config, tendon.json in `folder` ("": none) and a --config FILE, each of which
// may say otherwise than those before it.
std::vector<Description> descriptions(const std::filesystem::path& folder,
                                      const OpenOptions& options);
// The policy spec of all of them, one after the other.
void describe_robot(PolicySpec& spec, const std::vector<Description>& told);

// Fills layout, config, weights, policy spec (but the tokenizer) and notes.
OpenedModel open_folder(const std::filesystem::path& folder, const OpenOptions& options);

// One file, or those that an index names. Throws Error(Fault::checkpoint), also when an adapter
// lies beside them or alone.
std::vector<std::filesystem::path> weight_files(const std::filesystem::path& folder);

}  // namespace tendon
