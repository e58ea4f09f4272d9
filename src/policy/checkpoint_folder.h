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

// Where the weights of a folder lie; of an adapter alone, those of --base.
struct WeightFiles {
  std::vector<std::filesystem::path> weights;       // one, or those that `index` names
  std::filesystem::path index;                      // empty: none
  std::filesystem::path adapter, adapter_settings;  // PEFT's two files; empty: none
};
// Throws Error(Fault::checkpoint), also for an adapter without weights or settings, for several and
// for other forms of adapters; Error(Fault::usage) where --base does not fit.
WeightFiles weight_files(const std::filesystem::path& folder, const OpenOptions& options);
// With the adapter merged. Throws Error(Fault::checkpoint), and Error(Fault::usage) for a
// --lora-scale without an adapter.
std::unique_ptr<WeightSource> open_weights(const WeightFiles& files, const OpenOptions& options);

// --base as a folder.
std::filesystem::path base_folder(const OpenOptions& options);

}  // namespace tendon
