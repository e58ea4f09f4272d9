#include "policy/checkpoint_folder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <set>
#include <sstream>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "model/parameters.h"
#include "policy/lerobot_0_4.h"
#include "policy/policy_spec_json.h"
#include "policy/processors.h"
#include "policy/training_configs.h"
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

bool tell(const std::vector<Description>& told, const char* pointer) {
  const json::json_pointer key(pointer);
  return std::ranges::any_of(told, [&](const Description& d) { return d.json.contains(key); });
}

// Sizes from the tensors; what they cannot tell from config.json and then from what was told.
// `from_config_json` tells whether it knows the horizon, for which there is no usual value.
Config sizes(const fs::path& folder, const WeightSource& weights,
             const std::vector<Description>& told,
             const std::function<bool(Config&)>& from_config_json, const std::string& unread = "") {
  Config c = config_from_weights(weights, tell(told, "/vision/heads"));
  ensure(from_config_json(c) || tell(told, "/horizon"), Fault::checkpoint,
         "{} does not tell the action horizon (rows of a chunk) that it was trained with, and rows "
         "depend on each other: say --config NAME (its openpi training config) or --config "
         "FILE.json with {{\"horizon\": N}}; train_pytorch.py stores it in metadata.pt as config, "
         "model, action_horizon{}",
         folder.string(), unread.empty() ? "" : "; " + unread);
  for (const Description& d : told) c = read_config(d.json, d.file, c);
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

// Cameras in file order, and the sizes of observation.state and action: lerobot's policies read no
// other feature of type STATE or ACTION, of which data sets may have several.
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
         if (type == "STATE" && name == "observation.state")
           f.state_dim = feature_size(feature, name, file);
       });
  each("output_features",
       [&](const std::string& name, const std::string& type, const json& feature) {
         if (type == "ACTION" && name == "action") f.action_dim = feature_size(feature, name, file);
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
  const std::string old =
      "; lerobot has had no such key since 0.4: migrate the checkpoint with "
      "lerobot.processor.migrate_policy_normalization and fine-tune it as lerobot is now";
  for (const auto& [key, advice] : {std::pair("adapt_to_pi_aloha", old),
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
  // pi0.5 has no tensor of this size: its state goes into the prompt, however long.
  if (c.pi05())
    integer("max_state_dim", c.state_dim);
  else
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

// The model's cameras under their own names, except those that the robot calls otherwise.
void name_cameras(PolicySpec& s, const std::map<std::string, std::string>& rename) {
  for (const auto& [own, slot] : rename)
    if (std::ranges::find(s.slots, slot) != s.slots.end()) s.cameras[own] = slot;
  for (const std::string& slot : s.slots)
    if (std::ranges::none_of(s.cameras, [&](const auto& pair) { return pair.second == slot; }))
      s.cameras[slot] = slot;
}

PolicySpec spec_of(const Processors& p, const Features& features, const Config& c) {
  PolicySpec s{.slots = features.cameras,
               .transforms = {Normalize{.state = p.state, .action = p.action}},
               .state_dim = features.state_dim,
               .action_dim = features.action_dim};
  name_cameras(s, p.rename);
  s.prompt.tokens_max = c.max_token_len;
  ensure(!c.pi05() || p.writes_state, Fault::checkpoint,
         "policy_preprocessor.json has no step that writes the state into the prompt, which pi0.5 "
         "needs");
  s.prompt.state_in_prompt = c.pi05() && p.state_in_prompt.value_or(true);
  if (std::ssize(p.action_names) == s.action_dim) s.action_names = p.action_names;
  if (p.relative)
    s.transforms.insert(
        s.transforms.begin(),
        DeltaActions{mask_of_names(p.action_names, p.relative_excluded, s.action_dim),
                     Family::lerobot});
  return s;
}

int64_t known_dims(const Normalizer& of, int64_t most) {
  return of.centre.empty() ? most : std::min<int64_t>(std::ssize(of.centre), most);
}

// Weights come from the folder that was named, all else from `folder`.
void read_lerobot(const fs::path& folder, const fs::path& named, const OpenOptions& o,
                  OpenedModel& m) {
  m.layout = "lerobot";
  const std::string file = (folder / "config.json").string();
  const json config = read_json(folder / "config.json");
  const std::vector<Description> told = descriptions(folder, o);
  refuse_unsupported(config, file);
  ensure(o.robot.empty() || o.robot == "lerobot", Fault::usage,
         "--robot {} is for openpi checkpoints; {} names its own cameras and joints", o.robot,
         file);
  ensure(std::ranges::none_of(told, &Description::named), Fault::usage,
         "--config {} is for openpi checkpoints; {} is lerobot's", o.config, file);
  m.weights = open_weights(weight_files(named, o, config), o);
  const json peft = config.value("use_peft", json());
  ensure(peft.is_null() || peft == false || m.weights->adapter(), Fault::checkpoint,
         "{}: use_peft is {}, but there is no adapter: the model {}, and set use_peft to false",
         file, peft.dump(-1, ' ', true).substr(0, 60), kMergeFirst);
  ensure_type(policy_from_weights(*m.weights), config.at("type"), file);
  m.config = sizes(folder, *m.weights, told,
                   [&](Config& c) { return read_lerobot_sizes(config, file, c); });
  Features features = read_features(read_ordered_json(folder / "config.json"), file);
  std::optional<Normalize> given;
  if (!o.statistics.empty() && o.statistics != "none") {
    given = read_norm_stats(o.statistics, m.config.pi05());
    // Features of a base model are as wide as the model, whatever the robot.
    if (features.state_dim == m.config.state_dim)
      features.state_dim = known_dims(given->state, features.state_dim);
    if (features.action_dim == m.config.action_dim)
      features.action_dim = known_dims(given->action, features.action_dim);
  }
  if (m.config.pi05()) m.config.state_dim = std::max(m.config.state_dim, features.state_dim);
  const Processors p = read_processors(folder, {.state_dim = features.state_dim,
                                                .action_dim = features.action_dim,
                                                .statistics = o.statistics.empty()});
  ensure_same(config.value("normalization_mapping", json()), "VISUAL", p.visual, file);
  ensure_same(config, "use_relative_actions", p.relative, file);
  m.config.max_token_len = p.tokens_max.value_or(m.config.max_token_len);
  m.spec = spec_of(p, features, m.config);
  const std::optional<bool> old = of_lerobot_0_4(config, p, *m.weights);
  if (old.value_or(false)) follow_lerobot_0_4(file, config, o, m);
  describe_robot(m.spec, told);
  Normalize& n = m.spec.normalize();
  ensure(!n.asset && n.method.value_or(NormMethod::identity) == NormMethod::identity, Fault::usage,
         "{} has its statistics in its processors: leave out 'asset' and 'method' of 'normalize'",
         folder.string());
  if (n.method || o.statistics == "none") n.state.method = n.action.method = NormMethod::identity;
  if (given) n = *given;
  warn_of_unknown_keys(config, file, kLerobotKeys, m);
  if (!old) warn_of_lerobot_0_4(file, features.square, o, m);
}

// Nobody told the robot's width: openpi takes every state and as much of the statistics, which are
// often padded to the model's width. Values that varied in training must be there.
void allow_narrow_states(OpenedModel& m) {
  PolicySpec& s = m.spec;
  const Normalizer& n = s.normalize().state;
  s.state_dim = known_dims(n, m.config.state_dim);
  if (s.state_dim_min) return;
  int64_t least = n.method == NormMethod::identity ? 1 : s.state_dim;
  while (least > 1 && std::abs(n.spread(least - 1)) <= 1e-6) --least;
  least = std::min(std::max(least, state_needed(s.transforms)), s.state_dim);
  if (least == s.state_dim) return;
  s.state_dim_min = least;
  m.notes.push_back(fmt::format(
      "a state of {} values is taken as it comes: nobody tells the robot's width ('state_dim' of "
      "'robot' in tendon.json does), and {}",
      state_dims(s.state_dim, s.state_dim_min),
      n.method == NormMethod::identity ? "nothing is normalised"
                                       : "the statistics of the last ones are padding"));
}

// The statistics that the description, --asset or --statistics names, and the sizes that they tell.
void add_statistics(const fs::path& folder, const OpenOptions& o,
                    const std::vector<Description>& told, OpenedModel& m) {
  PolicySpec& s = m.spec;
  Normalize& n = s.normalize();
  const bool pi05 = m.config.pi05();
  const NormMethod method = n.method.value_or(pi05 ? NormMethod::quantiles : NormMethod::mean_std);
  ensure(method == NormMethod::identity || method == NormMethod::mean_std ||
             method == NormMethod::quantiles,
         Fault::usage, "{} is normalised by {}, expected MEAN_STD, QUANTILES or IDENTITY",
         folder.string(), name(method));
  const bool none = o.statistics == "none" || (method == NormMethod::identity && !n.given);
  if (none) {
    n.state = n.action = {.family = Family::openpi};
  } else if (!o.statistics.empty() || !n.given) {
    std::string asset = o.asset.empty() ? n.asset.value_or("") : o.asset;
    // A checkpoint fine-tuned by a named config may hold statistics under its own id only.
    if (o.asset.empty() && std::ranges::any_of(told, &Description::named) &&
        !fs::exists(folder / "assets" / asset / "norm_stats.json"))
      asset.clear();
    const Normalize read = read_norm_stats(
        o.statistics.empty() ? find_statistics(folder, asset) : fs::path(o.statistics),
        method == NormMethod::quantiles);
    n.state = read.state;
    n.action = read.action;
  }
  if (s.state_dim == 0) allow_narrow_states(m);
  if (s.action_dim == 0) s.action_dim = known_dims(n.action, m.config.action_dim);
}

// What would change the actions and is in no checkpoint of openpi.
void ask_for_transforms(const std::vector<Description>& told, const OpenOptions& o,
                        const fs::path& folder, bool state_told, OpenedModel& m) {
  if (!tell(told, "/robot")) {
    m.notes.push_back(
        "no openpi training config was named (--config NAME) and no robot described (\"robot\" in "
        "tendon.json or --config FILE): no robot transform, absolute actions, prompt as this kind "
        "of model has it by default");
    return;
  }
  const bool named_robot = !o.robot.empty();
  ensure(named_robot || tell(told, "/robot/transforms"), Fault::usage,
         "{} does not tell whether actions are relative to the state: say \"transforms\" in "
         "\"robot\", such as [{{\"type\": \"delta_actions\", \"mask\": [6, -1]}}, {{\"type\": "
         "\"normalize\"}}], or --config NAME",
         folder.string());
  ensure(named_robot || !m.config.pi05() || o.state_in_prompt || state_told ||
             tell(told, "/robot/prompt/state"),
         Fault::usage,
         "{} does not tell whether its prompt has the state in it: say \"prompt\": {{\"state\": "
         "true}} in \"robot\", --state-in-prompt or --no-state-in-prompt",
         folder.string());
}

void read_openpi(const fs::path& folder, const fs::path& named, const OpenOptions& o,
                 OpenedModel& m) {
  m.layout = "openpi";
  const std::string file = (folder / "config.json").string();
  const json config =
      fs::exists(folder / "config.json") ? read_json(folder / "config.json") : json::object();
  const std::vector<Description> told = descriptions(folder, o);
  m.weights = open_weights(weight_files(named, o, config), o);
  const TrainedWith trained = read_metadata(folder);
  const auto from_files = [&](Config& c) {
    ensure_agrees(config, "action_dim", c.action_dim, file);
    std::optional<int64_t> stated;
    if (config.contains("action_horizon")) stated = json_int(config, "action_horizon", file);
    c.horizon = stated.value_or(c.horizon);
    apply(trained, stated, c);
    const bool known = stated || trained.horizon;
    for (const Description& d : told) {
      if (!d.named) continue;
      ensure(d.json.at("action_dim") == c.action_dim, Fault::checkpoint,
             "{} has {} action dims, the model {}", d.file, d.json.at("action_dim").dump(),
             c.action_dim);
      ensure(!known || d.json.at("horizon") == c.horizon, Fault::checkpoint,
             "{}: action_horizon is {}, but {} has {}", stated ? file : trained.file, c.horizon,
             d.file, d.json.at("horizon").dump());
    }
    return known;
  };
  m.config = sizes(folder, *m.weights, told, from_files, trained.unread);
  if (trained.horizon || trained.max_token_len)
    m.notes.push_back(
        fmt::format("{}: trained with {} actions per chunk and prompts of at most {} "
                    "tokens",
                    trained.file, m.config.horizon, m.config.max_token_len));
  warn_of_unknown_keys(config, file, kOpenpiKeys, m);
  m.spec = {.slots = kSlots,
            .resizer = Family::openpi,
            .prompt = {.style = Family::openpi,
                       .state_in_prompt = m.config.pi05() && trained.state_in_prompt.value_or(true),
                       .tokens_max = m.config.max_token_len},
            .transforms = {Normalize{{.family = Family::openpi}, {.family = Family::openpi}}},
            .state_dim = 0,
            .action_dim = 0};
  name_cameras(m.spec, {});
  describe_robot(m.spec, told);
  add_statistics(folder, o, told, m);
  ask_for_transforms(told, o, folder, trained.state_in_prompt.has_value(), m);
}

}  // namespace

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

void describe_robot(PolicySpec& spec, const std::vector<Description>& told) {
  for (const Description& d : told)
    if (d.json.contains("robot"))
      spec = read_policy_spec(d.json.at("robot"), d.file + ": robot", std::move(spec));
}

OpenedModel open_folder(const fs::path& named, const OpenOptions& o) {
  OpenedModel m;
  const fs::path folder = described_in(named, o, m);
  ensure(!fs::is_directory(folder / "params"), Fault::checkpoint,
         "{} is a JAX (orbax) checkpoint; convert it first: tools/convert_orbax/convert_orbax.py",
         folder.string());
  const bool has_config = is_file(folder / "config.json");
  const bool lerobot = has_config && read_json(folder / "config.json").contains("type");
  lerobot ? read_lerobot(folder, named, o, m) : read_openpi(folder, named, o, m);
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
