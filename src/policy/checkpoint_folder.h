// The checkpoint folders that can be opened: lerobot's save_pretrained and openpi's PyTorch
// conversion.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
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
  bool uncertain =
      false;             // the adapter lies beside the weights, and nothing says what it is to them
  std::string left_out;  // what --lora-scale 0 leaves out
};
// `config`: config.json, where there is one. Throws Error(Fault::checkpoint), also for an adapter
// without weights or settings, for several and for other forms of adapters; Error(Fault::usage)
// where --base does not fit.
WeightFiles weight_files(const std::filesystem::path& folder, const OpenOptions& options,
                         const nlohmann::json& config);
// With the adapter merged. Throws Error(Fault::checkpoint), also where it is uncertain whether it
// shall be, and Error(Fault::usage) for a --lora-scale without an adapter.
std::unique_ptr<WeightSource> open_weights(const WeightFiles& files, const OpenOptions& options);

// What openpi's train_pytorch.py stored of its TrainConfig in metadata.pt; what is absent was not
// told there.
struct TrainedWith {
  std::string file;
  std::optional<int64_t> horizon, max_token_len, action_dim;
  std::optional<bool> state_in_prompt, pi05;
  std::string unread;  // why the file was not read
};
// Throws nothing for a file that cannot be read: another may tell the same.
TrainedWith read_metadata(const std::filesystem::path& folder);
// Its values into `config`, which comes from the tensors. Throws Error(Fault::checkpoint) where
// they contradict those, or the horizon of config.json.
void apply(const TrainedWith& trained, std::optional<int64_t> stated_horizon, Config& config);

// Alpha and rank of LoRA factors among the weights, for each of `modules`, as openpi's TrainConfig
// tells them in metadata.pt ("lora_config", of its pull request 854): attn_alpha, attn_rank,
// ffn_alpha, ffn_rank and use_rslora. Nothing where a module's are not told. Throws
// Error(Fault::checkpoint) for values of another type.
std::optional<LoraSettings> read_lora_of_training(const std::filesystem::path& folder,
                                                  const std::vector<std::string>& modules);

// assets/<id>/norm_stats.json; `wanted` may be empty when there is only one. Throws
// Error(Fault::checkpoint), and Error(Fault::usage) where one must be chosen.
std::filesystem::path find_statistics(const std::filesystem::path& folder,
                                      const std::string& wanted);

// --base as a folder.
std::filesystem::path base_folder(const OpenOptions& options);

}  // namespace tendon
