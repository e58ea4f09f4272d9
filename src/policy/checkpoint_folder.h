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
// The sizes of all of them, one after the other. Throws Error(Fault::checkpoint) as check() does.
void describe_sizes(Config& config, const std::vector<Description>& told);
// Their policy specs.
void describe_robot(PolicySpec& spec, const std::vector<Description>& told);

// A checkpoint folder of either layout, and what was said of it.
struct CheckpointFolder {
  std::filesystem::path path;   // of configuration and statistics
  std::filesystem::path named;  // of the weights: an adapter may have come without the rest
  std::string file;             // config.json, which openpi's folders may lack
  nlohmann::json config;        // what it says
  std::vector<Description> told;
  const OpenOptions& options;

  // Whether a description has something at this JSON pointer.
  bool tells(const char* pointer) const;
  // An integer of config.json must be what the tensors say. Throws Error(Fault::checkpoint).
  void ensure_agrees(const std::string& key, int64_t tensors) const;
};

// Both fill layout, config, weights, policy spec (but the tokenizer), notes and warnings.
void read_lerobot(const CheckpointFolder& folder, OpenedModel& model);
void read_openpi(const CheckpointFolder& folder, OpenedModel& model);

// The layout is lerobot's where config.json has a type.
OpenedModel open_folder(const std::filesystem::path& folder, const OpenOptions& options);

// Where the weights of a folder lie; of an adapter alone, those of --base.
struct WeightFiles {
  std::vector<std::filesystem::path> weights;       // one, or those that `index` names
  std::filesystem::path index;                      // empty: none
  std::vector<std::string> indexed;                 // the tensors that it names
  std::filesystem::path adapter, adapter_settings;  // PEFT's two files; empty: none
  bool uncertain = false;  // an adapter beside weights, and nothing says what it is to them
  std::string left_out;    // what --lora-scale 0 leaves out
};
// `config`: config.json, where there is one. Throws Error(Fault::checkpoint), also for an adapter
// without weights or settings, for several and for other forms of adapters; Error(Fault::usage)
// where --base does not fit.
WeightFiles weight_files(const std::filesystem::path& folder, const OpenOptions& options,
                         const nlohmann::json& config);
// With the adapter merged. Throws Error(Fault::checkpoint), also where it is uncertain whether it
// shall be, and Error(Fault::usage) for a --lora-scale without an adapter.
std::unique_ptr<WeightSource> open_weights(const WeightFiles& files, const OpenOptions& options);

// Alpha and rank of LoRA factors among the weights, for each of `modules`, as openpi's TrainConfig
// tells them in metadata.pt ("lora_config", of its pull request 854): attn_alpha, attn_rank,
// ffn_alpha, ffn_rank and use_rslora. Nothing where a module's are not told. Throws
// Error(Fault::checkpoint) for values of another type.
std::optional<LoraSettings> read_lora_of_training(const std::filesystem::path& folder,
                                                  const std::vector<std::string>& modules);

// --base as a folder.
std::filesystem::path base_folder(const OpenOptions& options);

}  // namespace tendon
