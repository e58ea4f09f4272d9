#include "policy/checkpoint_folder.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "model/config_file.h"
#include "model/parameters.h"
#include "policy/processors.h"
#include "tensor/check.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

const std::vector<std::string> kSlots = {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"};

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

void warn_of_unknown_keys(const json& config, const std::string& file,
                          const std::set<std::string>& known, OpenedModel& m) {
  std::vector<std::string> unknown;
  for (const auto& entry : config.items()) {
    const std::string& key = entry.key();
    if (!known.contains(key) && !known.contains(key.substr(0, key.find('_') + 1) + "*"))
      unknown.push_back(
          fmt::format("{} ({})", key, entry.value().dump(-1, ' ', true).substr(0, 40)));
  }
  if (!unknown.empty())
    m.warnings.push_back(
        fmt::format("{}: keys that this engine does not know and does not read, "
                    "whatever they change: {}",
                    file, fmt::join(unknown, ", ")));
}

// In files of their own, or in folders where they have names.
void refuse_adapters(const fs::path& folder) {
  static const std::regex kNames(R"((^|[^a-z])(adapter|lora).*\.(json|safetensors|bin|pth?))",
                                 std::regex::icase);
  std::error_code none;  // of a folder that cannot be read, or is inside the library
  for (const auto& entry : fs::directory_iterator(folder, none))
    ensure(!std::regex_search(entry.path().filename().string(), kNames) &&
               !is_file(entry.path() / "adapter_config.json"),
           Fault::checkpoint, "{} {}; or move it elsewhere to run the weights of {} without it",
           entry.path().string(), kMergeFirst, folder.string());
}

}  // namespace

std::vector<fs::path> weight_files(const fs::path& folder) {
  refuse_adapters(folder);
  const fs::path single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  if (is_file(single)) return {single};
  ensure(fs::exists(index), Fault::checkpoint,
         "{} holds neither model.safetensors nor model.safetensors.index.json; is the download "
         "complete?",
         folder.string());
  const json root = read_json(index);
  ensure(root.is_object() && root.contains("weight_map") && root.at("weight_map").is_object(),
         Fault::checkpoint, "{}: 'weight_map' is missing", index.string());
  std::set<fs::path> files;
  for (const auto& [tensor, file] : root.at("weight_map").items()) {
    ensure(file.is_string(), Fault::checkpoint, "{}: the file of {} is {}", index.string(), tensor,
           file.dump());
    const fs::path name = file.get<std::string>();
    ensure(name.has_filename() && !name.has_parent_path() && files.size() < 1024, Fault::checkpoint,
           "{}: '{}' is not a file name in the same folder", index.string(), name.string());
    files.insert(folder / name);
  }
  return {files.begin(), files.end()};
}

namespace {

std::unique_ptr<WeightSource> open_files(const fs::path& folder) {
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  for (const fs::path& file : weight_files(folder)) files.push_back(SafetensorsFile::open(file));
  if (is_file(folder / "model.safetensors")) return open_weights(std::move(files));
  const fs::path index = folder / "model.safetensors.index.json";
  const json root = read_json(index);
  for (const auto& entry : root.at("weight_map").items()) {
    const auto holds = [&](const auto& f) { return f->find(entry.key()) != nullptr; };
    ensure(std::ranges::any_of(files, holds), Fault::checkpoint, "{}: no file holds {}",
           index.string(), entry.key());
  }
  return open_weights(std::move(files));
}

bool tells_heads(const json& sizes) {
  return sizes.is_object() && sizes.contains("vision") && sizes.at("vision").is_object() &&
         sizes.at("vision").contains("heads");
}

// Sizes from the tensors; what they cannot tell from tendon.json and then from --config.
// `from_config_json` tells whether it knows the horizon, for which there is no usual value.
Config sizes(const fs::path& folder, const WeightSource& weights, const GivenConfig& given,
             const std::function<bool(Config&)>& from_config_json) {
  const fs::path beside = folder / "tendon.json";
  const json own = is_file(beside) ? read_json(beside) : json();
  Config c = config_from_weights(weights, tells_heads(own) || tells_heads(given.sizes));
  ensure(from_config_json(c) || own.contains("horizon") || given.sizes.contains("horizon"),
         Fault::checkpoint,
         "{} does not tell the action horizon (rows of a chunk) that it was trained with, and rows "
         "depend on each other: say --config NAME (its openpi training config) or --config "
         "FILE.json with {{\"horizon\": N}}; train_pytorch.py stores it in metadata.pt as config, "
         "model, action_horizon",
         folder.string());
  if (!own.is_null()) c = read_config(own, beside.string(), c);
  if (!given.sizes.is_null()) c = read_config(given.sizes, given.file, c);
  check(c);
  return c;
}

// An integer of the checkpoint's config.json that must agree with the tensors.
void ensure_agrees(const json& config, const std::string& key, int64_t tensors,
                   const std::string& file) {
  if (!config.contains(key)) return;
  ensure(json_int(config, key, file) == tensors, Fault::checkpoint,
         "{}: {} is {}, but the tensors say {}", file, key, json_int(config, key, file), tensors);
}

// A key of config.json that policy_preprocessor.json repeats.
void ensure_same(const json& config, const std::string& key, const json& processors,
                 const std::string& file) {
  if (config.contains(key) && config.at(key) != processors)
    fail(Fault::checkpoint,
         "{}: {} is {}, but {} in policy_preprocessor.json; one of the files belongs to another "
         "model",
         file, key, config.at(key).dump(), processors.dump());
}

// name -> length of a feature's first dimension, in file order for the cameras.
struct Features {
  std::vector<std::string> cameras;
  int64_t state_dim = 32, action_dim = 32;  // lerobot's defaults
  bool square = true;                       // pictures, as they were in training
};

int64_t feature_size(const json& feature, const std::string& name, const std::string& file) {
  ensure(feature.is_object() && feature.contains("shape") && feature.at("shape").is_array() &&
             feature.at("shape").size() == 1 && feature.at("shape")[0].is_number_integer(),
         Fault::checkpoint, "{}: feature '{}' has no shape of one dimension", file, name);
  return feature.at("shape")[0].get<int64_t>();
}

Features read_features(const nlohmann::ordered_json& config, const std::string& file) {
  Features f;
  const auto each = [&](const char* key, auto use) {
    if (!config.contains(key) || !config.at(key).is_object()) return;
    for (const auto& [name, feature] : config.at(key).items()) {
      ensure(feature.is_object() && feature.contains("type") && feature.at("type").is_string(),
             Fault::checkpoint, "{}: feature '{}' has no type", file, name);
      use(name, feature.at("type").template get<std::string>(), json(feature));
    }
  };
  each("input_features",
       [&](const std::string& name, const std::string& type, const json& feature) {
         if (type == "VISUAL") {
           f.cameras.push_back(camera_name(name));
           const json shape = feature.value("shape", json());
           f.square = f.square && shape.is_array() && shape.size() == 3 && shape[1] == shape[2];
         }
         if (type == "STATE") f.state_dim = feature_size(feature, name, file);
       });
  each("output_features",
       [&](const std::string& name, const std::string& type, const json& feature) {
         if (type == "ACTION") f.action_dim = feature_size(feature, name, file);
       });
  const int64_t empty =
      config.contains("empty_cameras") ? json_int(json(config), "empty_cameras", file) : 0;
  ensure(empty >= 0 && empty <= 16, Fault::checkpoint, "{}: empty_cameras is {}", file, empty);
  for (int64_t i = 0; i < empty; ++i) {
    const std::string name = fmt::format("empty_camera_{}", i);
    if (std::ranges::find(f.cameras, name) == f.cameras.end()) f.cameras.push_back(name);
  }
  ensure(!f.cameras.empty(), Fault::checkpoint, "{}: no VISUAL feature among input_features", file);
  return f;
}

void refuse_unsupported(const json& config, const std::string& file) {
  const std::string type = json_string(config, "type", file);
  ensure(type == "pi0" || type == "pi05", Fault::checkpoint,
         "{}: type is '{}'; this engine runs 'pi0' and 'pi05'", file, type);
  const std::string merge = fmt::format(": the model {}, and set use_peft to false", kMergeFirst);
  const std::string old =
      "; lerobot has had no such key since 0.4: migrate the checkpoint with "
      "lerobot.processor.migrate_policy_normalization and fine-tune it as lerobot is now";
  for (const auto& [key, advice] : {std::pair("use_peft", merge),
                                    {"adapt_to_pi_aloha", old},
                                    {"use_delta_joint_actions_aloha", old},
                                    {"use_visual_memory", ""},
                                    {"use_proprioceptive_memory", ""}}) {
    const json value = config.value(key, json());
    ensure(value.is_null() || value == false, Fault::checkpoint,
           "{}: {} is {}, which changes the actions and is not supported; expected false{}", file,
           key, value.dump().substr(0, 60), advice);
  }
}

void ensure_type(PolicyType type, const std::string& stated, const std::string& file) {
  ensure(stated == name(type), Fault::checkpoint, "{}: the model is '{}', but the tensors are {}",
         file, stated, name(type));
}

bool read_lerobot_sizes(const json& config, const std::string& file, Config& c) {
  const auto integer = [&](const char* key, int64_t& to) {
    if (config.contains(key)) to = json_int(config, key, file);
  };
  ensure_agrees(config, "max_action_dim", c.action_dim, file);
  ensure_agrees(config, "max_state_dim", c.state_dim, file);
  integer("chunk_size", c.horizon);
  integer("num_steps", c.num_steps);  // lerobot 0.3 and older
  integer("num_inference_steps", c.num_steps);
  integer("tokenizer_max_length", c.max_token_len);
  if (config.contains("min_period")) c.min_period = json_number(config, "min_period", file);
  if (config.contains("max_period")) c.max_period = json_number(config, "max_period", file);
  if (config.contains("image_resolution")) {
    const json side = c.vision.image;
    ensure(config.at("image_resolution") == json::array({side, side}), Fault::checkpoint,
           "{}: image_resolution is {}, but the tensors say {}", file,
           config.at("image_resolution").dump(), side.dump());
  }
  return true;  // lerobot's files mean its default by a chunk_size that is absent
}

void prepare_prompt(const Processors& p, OpenedModel& m) {
  PromptOptions& prompt = m.spec.prompt;
  prompt = {.style = PromptStyle::lerobot, .tokens_max = m.config.max_token_len};
  if (m.config.pi05()) {
    ensure(p.writes_state, Fault::checkpoint,
           "policy_preprocessor.json has no step that writes the state into the prompt, which "
           "pi0.5 needs");
    prompt.state_in_prompt = p.state_in_prompt.value_or(true);
  }
}

// What releases before 0.5 did in another way, of which their files say nothing.
void warn_of_lerobot_0_4(const json& config, const std::string& file, const Features& features,
                         const Processors& p, const OpenOptions& o, OpenedModel& m) {
  if (p.relative_step) return;
  const std::string age = fmt::format(
      "{}: policy_preprocessor.json has no relative_actions_processor: {} of lerobot 0.4, which",
      file, config.contains("rtc_config") ? "it may be" : "without rtc_config here, it is");
  const PolicySpec& s = m.spec;
  if (o.state_in_prompt.value_or(s.prompt.state_in_prompt) && s.state_dim < m.config.state_dim &&
      !o.pad_state_in_prompt)
    m.warnings.push_back(age + " padded the state in the prompt; say --pad-state for such a model");
  if (!features.square)
    m.warnings.push_back(age +
                         " filled the bars around pictures that are not square with -3, here with "
                         "-1; give such a model square pictures, or fine-tune it again");
}

OpenedModel open_lerobot(const fs::path& folder, const OpenOptions& o, const GivenConfig& given) {
  OpenedModel m{.layout = "lerobot"};
  const std::string file = (folder / "config.json").string();
  const json config = read_json(folder / "config.json");
  refuse_unsupported(config, file);
  ensure(o.robot.empty() || o.robot == "lerobot", Fault::usage,
         "--robot {} is for openpi checkpoints; {} names its own cameras and joints", o.robot,
         file);
  ensure(!given.training, Fault::usage, "--config {} is for openpi checkpoints; {} is lerobot's",
         o.config, file);
  m.weights = open_files(folder);
  ensure_type(policy_from_weights(*m.weights), config.at("type"), file);
  m.config = sizes(folder, *m.weights, given,
                   [&](Config& c) { return read_lerobot_sizes(config, file, c); });
  const Features features = read_features(read_ordered_json(folder / "config.json"), file);
  PolicySpec& s = m.spec;
  s.robot = Robot::lerobot;
  s.cameras = features.cameras;
  s.resizer = Resizer::lerobot;
  s.state_dim = features.state_dim;
  s.action_dim = features.action_dim;
  m.config.cameras = std::ssize(s.cameras);
  const Processors p = read_processors(
      folder,
      {.state_dim = s.state_dim, .action_dim = s.action_dim, .statistics = o.statistics.empty()});
  ensure_same(config.value("normalization_mapping", json()), "VISUAL", p.visual, file);
  ensure_same(config, "use_relative_actions", p.relative, file);
  s.rename = p.rename;
  s.state = p.state;
  s.action = p.action;
  if (!o.statistics.empty() && o.statistics != "none") {
    const Statistics statistics = read_norm_stats(o.statistics, m.config.pi05());
    s.state = statistics.state;
    s.action = statistics.action;
  }
  m.config.max_token_len = p.tokens_max.value_or(m.config.max_token_len);
  prepare_prompt(p, m);
  warn_of_unknown_keys(config, file, kLerobotKeys, m);
  warn_of_lerobot_0_4(config, file, features, p, o, m);
  s.action_names = p.action_names;
  if (std::ssize(s.action_names) != s.action_dim) s.action_names = numbered_actions(s.action_dim);
  if (p.relative) s.delta = relative_mask(p.action_names, p.relative_excluded, s.action_dim);
  return m;
}

// assets/<id>/norm_stats.json; `wanted` may be empty when there is only one.
fs::path find_statistics(const fs::path& folder, const std::string& wanted) {
  const fs::path assets = folder / "assets";
  std::vector<std::string> ids;
  if (fs::is_directory(assets))
    for (const auto& entry : fs::recursive_directory_iterator(assets))
      if (entry.path().filename() == "norm_stats.json" && ids.size() < 1000)
        ids.push_back(entry.path().parent_path().lexically_relative(assets).string());
  std::ranges::sort(ids);
  std::string list;
  for (const std::string& id : ids) list += (list.empty() ? "" : ", ") + id;
  ensure(!ids.empty(), Fault::checkpoint,
         "{} has no assets/<id>/norm_stats.json; copy openpi's assets folder beside the weights, "
         "or give --statistics FILE",
         folder.string());
  if (wanted.empty()) {
    ensure(ids.size() == 1, Fault::usage, "{} has statistics for {}; choose with --asset",
           folder.string(), list);
    return assets / ids.front() / "norm_stats.json";
  }
  ensure(std::ranges::find(ids, wanted) != ids.end(), Fault::checkpoint,
         "{} has no assets/{}/norm_stats.json; there is: {}", folder.string(), wanted, list);
  return assets / wanted / "norm_stats.json";
}

std::string asset_of(const fs::path& folder, const OpenOptions& o, const GivenConfig& given) {
  if (!o.asset.empty()) return o.asset;
  // A fine-tuned checkpoint may hold statistics under its own id only.
  if (given.training && fs::exists(folder / "assets" / given.training->asset / "norm_stats.json"))
    return given.training->asset;
  return "";
}

OpenedModel open_openpi(const fs::path& folder, const OpenOptions& o, const GivenConfig& given) {
  OpenedModel m{.layout = "openpi"};
  const std::string file = (folder / "config.json").string();
  const json config =
      fs::exists(folder / "config.json") ? read_json(folder / "config.json") : json::object();
  m.weights = open_files(folder);
  m.config = sizes(folder, *m.weights, given, [&](Config& c) {
    ensure_agrees(config, "action_dim", c.action_dim, file);
    if (given.training) {  // a converted JAX checkpoint does not know its horizon
      c.horizon = given.training->horizon;
      c.max_token_len = given.training->tokens_max;
    }
    if (config.contains("action_horizon")) c.horizon = json_int(config, "action_horizon", file);
    return given.training || config.contains("action_horizon");
  });
  warn_of_unknown_keys(config, file, kOpenpiKeys, m);
  PolicySpec& s = m.spec;
  s.cameras = kSlots;
  m.config.cameras = std::ssize(s.cameras);
  s.resizer = Resizer::openpi;
  s.prompt = {.style = PromptStyle::openpi,
              .state_in_prompt = m.config.pi05(),
              .tokens_max = m.config.max_token_len};
  if (o.statistics != "none") {
    const fs::path path = o.statistics.empty() ? find_statistics(folder, asset_of(folder, o, given))
                                               : fs::path(o.statistics);
    const Statistics statistics = read_norm_stats(path, m.config.pi05());
    s.state = statistics.state;
    s.action = statistics.action;
    s.state_dim = std::min<int64_t>(std::ssize(s.state.centre), m.config.state_dim);
    s.action_dim = std::min<int64_t>(std::ssize(s.action.centre), m.config.action_dim);
  } else {
    s.state.family = s.action.family = NormFamily::openpi;
  }
  s.action_names = numbered_actions(s.action_dim);
  if (!o.robot.empty()) set_robot(s, robot_named(o.robot));
  if (given.training) {
    if (config.contains("action_horizon"))
      ensure(m.config.horizon == given.training->horizon, Fault::checkpoint,
             "{}: action_horizon is {}, but {} has {}", file, m.config.horizon,
             given.training->name, given.training->horizon);
    apply_training_config(m, *given.training);
  } else if (o.robot.empty()) {
    m.notes.push_back(
        "no openpi training config was named (--config NAME): no robot transform, absolute "
        "actions, prompt as this kind of model has it by default");
  }
  return m;
}

}  // namespace

std::vector<std::string> numbered_actions(int64_t dim) {
  std::vector<std::string> names;
  for (int64_t d = 0; d < dim; ++d) names.push_back(fmt::format("action_{}", d));
  return names;
}

void set_robot(PolicySpec& s, Robot robot) {
  const RobotFacts& f = facts(robot);
  s.robot = robot;
  if (f.cameras.empty()) return;
  s.rename = f.cameras;
  s.required.clear();
  for (const std::string& camera : f.required_cameras) s.required.push_back(f.cameras.at(camera));
  s.state_dim = f.state_dim;
  s.action_dim = f.action_dim;
  s.action_names = f.action_names;
}

void apply_training_config(OpenedModel& m, const TrainingConfig& t) {
  ensure(t.policy == m.config.policy, Fault::usage, "--config {} is for {}, but the model is {}",
         t.name, name(t.policy), name(m.config.policy));
  ensure(t.action_dim == m.config.action_dim, Fault::checkpoint,
         "--config {} has {} action dims, the model {}", t.name, t.action_dim, m.config.action_dim);
  PolicySpec& s = m.spec;
  set_robot(s, t.robot);
  s.delta = t.relative;
  s.default_prompt = t.default_prompt;
  s.prompt.state_in_prompt = t.state_in_prompt;
  s.prompt.style = PromptStyle::openpi;
}

OpenedModel open_folder(const fs::path& folder, const OpenOptions& o, const GivenConfig& given) {
  ensure(!fs::is_directory(folder / "params"), Fault::checkpoint,
         "{} is a JAX (orbax) checkpoint; convert it first: tools/convert_orbax/convert_orbax.py",
         folder.string());
  const bool has_config = is_file(folder / "config.json");
  const bool lerobot = has_config && read_json(folder / "config.json").contains("type");
  OpenedModel m = lerobot ? open_lerobot(folder, o, given) : open_openpi(folder, o, given);
  if (o.statistics == "none")
    m.notes.push_back("--statistics none: state and actions are not normalised");
  m.unused = check_parameters(*m.weights, m.config);
  for (const std::string& name : m.unused)
    ensure(!alters_a_module(name, m.config), Fault::checkpoint, "{}: {} {}",
           m.weights->description(), name, kMergeFirst);
  return m;
}

}  // namespace tendon
