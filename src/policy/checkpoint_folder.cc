#include "policy/checkpoint_folder.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <sstream>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "model/weights.h"
#include "policy/policy_spec_json.h"
#include "tensor/check.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

std::set<std::string> words(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

// Keys of config.json that are read here or change no action, in all releases.
const std::set<std::string> kLerobotKeys = words(
    "type n_obs_steps input_features output_features device use_amp use_peft push_to_hub repo_id "
    "private tags license pretrained_path pretrained_revision paligemma_variant "
    "action_expert_variant dtype chunk_size n_action_steps max_state_dim max_action_dim "
    "num_inference_steps num_steps time_* min_period max_period use_relative_actions "
    "relative_exclude_joints action_feature_names rtc_config image_resolution empty_cameras "
    "normalization_mapping tokenizer_max_length gradient_checkpointing compile_* "
    "freeze_vision_encoder train_expert_only train_state_proj optimizer_* scheduler_* memory_* "
    "use_visual_memory use_proprioceptive_memory proj_width use_cache attention_implementation "
    "adapt_to_pi_aloha use_delta_joint_actions_aloha");
const std::set<std::string> kOpenpiKeys = words(
    "action_dim action_horizon paligemma_variant action_expert_variant precision dtype pytorch_*");

void warn_of_unknown_keys(const CheckpointFolder& folder, const std::set<std::string>& known,
                          OpenedModel& m) {
  std::vector<std::string> unknown;
  for (const auto& entry : folder.config.items()) {
    const std::string& key = entry.key();
    if (!known.contains(key) && !known.contains(key.substr(0, key.find('_') + 1) + "*"))
      unknown.push_back(
          fmt::format("{} ({})", key, entry.value().dump(-1, ' ', true).substr(0, 40)));
  }
  if (!unknown.empty())
    m.warnings.push_back(
        fmt::format("{}: keys that this engine does not know and does not read, "
                    "whatever they change: {}",
                    folder.file, fmt::join(unknown, ", ")));
}

// Where everything but the weights is: an adapter of PEFT may have come without it.
fs::path described_in(const fs::path& named, const OpenOptions& o, OpenedModel& m) {
  if (o.base.empty()) return named;
  for (const char* name : {"config.json", "policy_preprocessor.json", "tendon.json", "assets"})
    if (fs::exists(named / name)) return named;
  m.warnings.push_back(
      fmt::format("{} holds an adapter and nothing else: configuration and statistics are those of "
                  "{}, which may be another robot's",
                  named.string(), o.base));
  return base_folder(o);
}

}  // namespace

bool CheckpointFolder::tells(const char* pointer) const {
  const json::json_pointer key(pointer);
  return std::ranges::any_of(told, [&](const Description& d) { return d.json.contains(key); });
}

void CheckpointFolder::ensure_agrees(const std::string& key, int64_t tensors) const {
  if (!config.contains(key)) return;
  ensure(json_int(config, key, file) == tensors, Fault::checkpoint,
         "{}: {} is {}, but the tensors say {}", file, key, json_int(config, key, file), tensors);
}

std::vector<Description> descriptions(const fs::path& folder, const OpenOptions& o) {
  std::vector<Description> told;
  if (!o.robot.empty()) told.push_back({{{"robot", robot_json(o.robot)}}, "--robot"});
  const bool file = o.config.ends_with(".json") || fs::exists(o.config);
  if (!o.config.empty() && !file)
    told.push_back({training_config(o.config), "--config " + o.config, true});
  const fs::path beside = folder / "tendon.json";
  if (!folder.empty() && is_file(beside)) told.push_back({read_json(beside), beside.string()});
  if (!o.config.empty() && file) {
    try {
      told.push_back({read_json(o.config), o.config});
    } catch (const Error& error) {  // what the command line names is the command line's fault
      throw Error(Fault::usage, error.what());
    }
  }
  return told;
}

void describe_sizes(Config& config, const std::vector<Description>& told) {
  for (const Description& d : told) config = read_config(d.json, d.file, config);
  check(config);
}

void describe_robot(PolicySpec& spec, const std::vector<Description>& told) {
  for (const Description& d : told)
    if (d.json.contains("robot"))
      spec = read_policy_spec(d.json.at("robot"), d.file + ": robot", std::move(spec));
}

OpenedModel open_folder(const fs::path& named, const OpenOptions& o) {
  OpenedModel m;
  const fs::path path = described_in(named, o, m);
  ensure(!fs::is_directory(path / "params"), Fault::checkpoint,
         "{} is a JAX (orbax) checkpoint; convert it first: tools/convert_orbax/convert_orbax.py",
         path.string());
  const fs::path file = path / "config.json";
  const bool has_config = is_file(file) || fs::exists(file);
  const CheckpointFolder folder{.path = path,
                                .named = named,
                                .file = file.string(),
                                .config = has_config ? read_json(file) : json::object(),
                                .told = descriptions(path, o),
                                .options = o};
  const bool lerobot = folder.config.contains("type");
  warn_of_unknown_keys(folder, lerobot ? kLerobotKeys : kOpenpiKeys, m);
  lerobot ? read_lerobot(folder, m) : read_openpi(folder, m);
  m.config.cameras = std::ssize(m.spec.slots);
  check(m.config);
  if (o.statistics == "none")
    m.notes.push_back("--statistics none: state and actions are not normalised");
  m.unused = check_parameters(*m.weights, m.config);
  for (const std::string& name : m.unused)
    ensure(!alters_a_module(name, m.config), Fault::checkpoint,
           "{}: {} is no parameter of {} but looks trained; it {}", m.weights->description(), name,
           tendon::name(m.config.policy), kMergeFirst);
  return m;
}

}  // namespace tendon
