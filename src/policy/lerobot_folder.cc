// Folders of lerobot's save_pretrained: config.json, the processors, and what lerobot 0.4 did in
// another way than later releases, of which its files say nothing.
#include <algorithm>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "policy/checkpoint_folder.h"
#include "policy/processors.h"
#include "tensor/check.h"

namespace tendon {
namespace {

using nlohmann::json;

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

int64_t feature_size(const nlohmann::ordered_json& feature, const std::string& name,
                     const std::string& file) {
  ensure(feature.contains("shape") && feature.at("shape").is_array() &&
             feature.at("shape").size() == 1 && feature.at("shape")[0].is_number_integer(),
         Fault::checkpoint, "{}: feature '{}' has no shape of one dimension", file, name);
  return feature.at("shape")[0].get<int64_t>();
}

Features read_features(const CheckpointFolder& folder) {
  const std::string& file = folder.file;
  // Once more, for the order of keys; lookups are linear, so only small files.
  const auto config = nlohmann::ordered_json::parse(read_file(file, 128 << 10));
  Features f;
  for (const std::string key : {"input_features", "output_features"}) {
    if (!config.contains(key) || !config.at(key).is_object()) continue;
    const bool input = key == "input_features";
    for (const auto& [name, feature] : config.at(key).items()) {
      ensure(feature.is_object() && feature.contains("type") && feature.at("type").is_string(),
             Fault::checkpoint, "{}: feature '{}' has no type", file, name);
      const auto type = feature.at("type").get<std::string>();
      if (input && type == "VISUAL") {
        f.cameras.push_back(camera_name(name));
        const auto shape = feature.value("shape", nlohmann::ordered_json());
        f.square = f.square && shape.is_array() && shape.size() == 3 && shape[1] == shape[2];
      }
      if (input && type == "STATE" && name == "observation.state")
        f.state_dim = feature_size(feature, name, file);
      if (!input && type == "ACTION" && name == "action")
        f.action_dim = feature_size(feature, name, file);
    }
  }
  const int64_t empty =
      config.contains("empty_cameras") ? json_int(folder.config, "empty_cameras", file) : 0;
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

// What the tensors cannot tell, into sizes that come from them. The horizon needs no telling: by a
// chunk_size that is absent lerobot's files mean its default.
void read_sizes(const CheckpointFolder& folder, Config& c) {
  const json& config = folder.config;
  const std::string& file = folder.file;
  ensure(config.at("type") == name(c.policy), Fault::checkpoint,
         "{}: the model is '{}', but the tensors are {}", file,
         config.at("type").get<std::string>(), name(c.policy));
  const auto integer = [&](const char* key, int64_t& to) {
    if (config.contains(key)) to = json_int(config, key, file);
  };
  folder.ensure_agrees("max_action_dim", c.action_dim);
  // pi0.5 has no tensor of this size: its state goes into the prompt, however long.
  if (c.pi05())
    integer("max_state_dim", c.state_dim);
  else
    folder.ensure_agrees("max_state_dim", c.state_dim);
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
}

PolicySpec spec_of(const Processors& p, const Features& features, const Config& c) {
  PolicySpec s{.slots = features.cameras,
               .transforms = {Normalize{.state = p.state, .action = p.action}},
               .state_dim = features.state_dim,
               .action_dim = features.action_dim};
  // The model's cameras under their own names, except those that the robot calls otherwise.
  for (const auto& [own, slot] : p.rename)
    if (std::ranges::find(s.slots, slot) != s.slots.end()) s.cameras[own] = slot;
  for (const std::string& slot : s.slots)
    if (std::ranges::none_of(s.cameras, [&](const auto& pair) { return pair.second == slot; }))
      s.cameras[slot] = slot;
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

// ---- lerobot 0.4: the state was padded in the prompt of pi0.5, the bars around pictures that are
// not square were -3, and up to 0.4.2 the times of the Euler steps were added up ----

bool pads_state(const PolicySpec& s, const Config& c, const OpenOptions& o) {
  return o.state_in_prompt.value_or(s.prompt.state_in_prompt) && s.state_dim < c.state_dim;
}

// Whether a checkpoint is of 0.4, as far as that can be seen. The processors of 0.5.1 and later
// have a step more, config.json of 0.4.0 and 0.4.1 has no rtc_config; between them, 0.4 stored the
// tied token table once, 0.5.0 stores it twice.
std::optional<bool> of_lerobot_0_4(const json& config, const Processors& p,
                                   const WeightSource& weights) {
  if (p.relative_step) return false;
  if (!config.contains("rtc_config")) return true;
  const NamedTensors& all = weights.tensors();
  const auto head = all.find(kPaliGemma + "lm_head.weight"), table = all.find(kTokenTable);
  if (weights.adapter() || head == all.end() || table == all.end()) return {};
  return head->second.bytes.data() == table->second.bytes.data();
}

// Does it as 0.4 did, with a note. config.json of 0.4.3 and later has use_peft.
void follow_lerobot_0_4(const CheckpointFolder& folder, OpenedModel& m) {
  PolicySpec& s = m.spec;
  s.dark_bars = true;
  const bool sums = !folder.config.contains("use_peft");
  if (sums) s.sequence = TimeSequence::lerobot_sum;
  const bool padded = pads_state(s, m.config, folder.options);
  if (padded) s.prompt.padded_state = m.config.state_dim;
  m.notes.push_back(fmt::format(
      "{}: of lerobot 0.4: {}{}bars around pictures that are not square are -3; {}"
      "--no-dark-bars says otherwise",
      folder.file, sums ? "denoising times are added up, " : "",
      padded ? "the state is padded in the prompt, " : "", padded ? "--no-pad-state, " : ""));
}

// Where it cannot be seen: warnings that name the option for each, unless it was said.
// `square`: pictures were, in training.
void warn_of_lerobot_0_4(const CheckpointFolder& folder, bool square, OpenedModel& m) {
  const OpenOptions& o = folder.options;
  const std::string age = fmt::format(
      "{}: policy_preprocessor.json has no relative_actions_processor: it may be of lerobot 0.4, "
      "which",
      folder.file);
  if (pads_state(m.spec, m.config, o) && !m.spec.prompt.padded_state && !o.pad_state_in_prompt)
    m.warnings.push_back(age +
                         " padded the state in the prompt; say --pad-state for such a model, "
                         "--no-pad-state for others");
  if (!square && !m.spec.dark_bars && !o.dark_bars)
    m.warnings.push_back(age +
                         " filled the bars around pictures that are not square with -3; say "
                         "--dark-bars for such a model, --no-dark-bars for others");
}

}  // namespace

void read_lerobot(const CheckpointFolder& folder, OpenedModel& m) {
  m.layout = "lerobot";
  const std::string& file = folder.file;
  const json& config = folder.config;
  const OpenOptions& o = folder.options;
  refuse_unsupported(config, file);
  ensure(o.robot.empty() || o.robot == "lerobot", Fault::usage,
         "--robot {} is for openpi checkpoints; {} names its own cameras and joints", o.robot,
         file);
  ensure(std::ranges::none_of(folder.told, &Description::named), Fault::usage,
         "--config {} is for openpi checkpoints; {} is lerobot's", o.config, file);
  m.weights = open_weights(weight_files(folder.named, o, config), o);
  const json peft = config.value("use_peft", json());
  ensure(peft.is_null() || peft == false || m.weights->adapter(), Fault::checkpoint,
         "{}: use_peft is {}, but there is no adapter: the model {}, and set use_peft to false",
         file, peft.dump(-1, ' ', true).substr(0, 60), kMergeFirst);
  m.config = config_from_weights(*m.weights, folder.tells("/vision/heads"));
  read_sizes(folder, m.config);
  describe_sizes(m.config, folder.told);
  Features features = read_features(folder);
  std::optional<Normalize> given;
  if (!o.statistics.empty() && o.statistics != "none") {
    given = read_norm_stats(o.statistics, m.config.pi05());
    // Features of a base model are as wide as the model, whatever the robot.
    if (features.state_dim == m.config.state_dim)
      features.state_dim = given->state.known_dims(features.state_dim);
    if (features.action_dim == m.config.action_dim)
      features.action_dim = given->action.known_dims(features.action_dim);
  }
  if (m.config.pi05()) m.config.state_dim = std::max(m.config.state_dim, features.state_dim);
  const Processors p = read_processors(folder.path, {.state_dim = features.state_dim,
                                                     .action_dim = features.action_dim,
                                                     .statistics = o.statistics.empty()});
  ensure_same(config.value("normalization_mapping", json()), "VISUAL", p.visual, file);
  ensure_same(config, "use_relative_actions", p.relative, file);
  m.config.max_token_len = p.tokens_max.value_or(m.config.max_token_len);
  m.spec = spec_of(p, features, m.config);
  const std::optional<bool> old = of_lerobot_0_4(config, p, *m.weights);
  if (old.value_or(false)) follow_lerobot_0_4(folder, m);
  describe_robot(m.spec, folder.told);
  Normalize& n = m.spec.normalize();
  ensure(!n.asset && n.method.value_or(NormMethod::identity) == NormMethod::identity, Fault::usage,
         "{} has its statistics in its processors: leave out 'asset' and 'method' of 'normalize'",
         folder.path.string());
  if (n.method || o.statistics == "none") n.state.method = n.action.method = NormMethod::identity;
  if (given) n = *given;
  if (!old) warn_of_lerobot_0_4(folder, features.square, m);
}

}  // namespace tendon
