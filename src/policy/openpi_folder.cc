// Folders of openpi's PyTorch conversion and of train_pytorch.py: config.json, what metadata.pt
// tells of the training, and the statistics below assets/.
#include <algorithm>
#include <cmath>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/pickle.h"
#include "policy/checkpoint_folder.h"
#include "tensor/check.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// A member of what train_pytorch.py stored of its TrainConfig in metadata.pt.
struct Metadata {
  std::string file;
  json value;          // null: it was not told there
  std::string unread;  // why the file was not read: another may tell the same

  // A key of `value`: int64_t or bool. What has another type is as good as absent.
  template <class T>
  std::optional<T> get(const char* key) const {
    const json told = value.is_object() ? value.value(key, json()) : json();
    const bool fits = std::is_same_v<T, bool> ? told.is_boolean() : told.is_number_integer();
    return fits ? std::optional(told.get<T>()) : std::nullopt;
  }
};

Metadata read_metadata(const fs::path& folder, const char* member) {
  Metadata m{.file = (folder / "metadata.pt").string()};
  if (!is_file(m.file)) return m;
  try {
    m.value = read_torch_file(m.file).value(json::json_pointer(member), json());
  } catch (const Error& error) {
    m.unread = error.what();
  } catch (const json::exception&) {
    m.unread = m.file + " holds no dictionary";
  }
  return m;
}

// What config.json, metadata.pt and a named training config tell, into sizes that come from the
// tensors. Throws Error(Fault::checkpoint) where they contradict those or each other, or nothing
// tells the horizon, for which there is no usual value.
void read_sizes(const CheckpointFolder& folder, const Metadata& trained, Config& c) {
  folder.ensure_agrees("action_dim", c.action_dim);
  const auto horizon = trained.get<int64_t>("action_horizon");
  std::optional<int64_t> stated;
  if (folder.config.contains("action_horizon"))
    stated = json_int(folder.config, "action_horizon", folder.file);
  const auto agree = [&](const char* key, const auto& told, auto other, const char* source) {
    ensure(!told || *told == other, Fault::checkpoint,
           "{}: {} is {}, but {} {}; one of the files belongs to another model", trained.file, key,
           told.value_or(other), source, other);
  };
  agree("action_dim", trained.get<int64_t>("action_dim"), c.action_dim, "the tensors say");
  agree("pi05", trained.get<bool>("pi05"), c.pi05(), "of the tensors it is");
  if (stated) agree("action_horizon", horizon, *stated, "config.json says");
  const bool known = stated || horizon;
  if (known) c.horizon = stated ? *stated : *horizon;
  c.max_token_len = trained.get<int64_t>("max_token_len").value_or(c.max_token_len);
  for (const Description& d : folder.told) {
    if (!d.named) continue;
    ensure(d.json.at("action_dim") == c.action_dim, Fault::checkpoint,
           "{} has {} action dims, the model {}", d.file, d.json.at("action_dim").dump(),
           c.action_dim);
    ensure(!known || d.json.at("horizon") == c.horizon, Fault::checkpoint,
           "{}: action_horizon is {}, but {} has {}", stated ? folder.file : trained.file,
           c.horizon, d.file, d.json.at("horizon").dump());
  }
  ensure(known || folder.tells("/horizon"), Fault::checkpoint,
         "{} does not tell the action horizon (rows of a chunk) that it was trained with, and rows "
         "depend on each other: say --config NAME (its openpi training config) or --config "
         "FILE.json with {{\"horizon\": N}}; train_pytorch.py stores it in metadata.pt as config, "
         "model, action_horizon{}",
         folder.path.string(), trained.unread.empty() ? "" : "; " + trained.unread);
}

// Where the settings of a module stand: of its tower and part, of its part, of all. Empty: they are
// for other modules.
std::vector<std::string> lora_keys(const std::string& module) {
  const bool expert = module.find("gemma_expert") != module.npos;
  const bool attention = module.find(".self_attn.") != module.npos;
  if (!expert && module.find("language_model") == module.npos) return {};
  if (!attention && module.find(".mlp.") == module.npos) return {};
  const std::string part = attention ? "attn_" : "ffn_";
  return {(expert ? "expert_" : "paligemma_") + part, part, ""};
}

// assets/<id>/norm_stats.json; `wanted` may be empty when there is only one. Throws
// Error(Fault::checkpoint), and Error(Fault::usage) where one must be chosen.
fs::path find_statistics(const fs::path& folder, const std::string& wanted) {
  const fs::path assets = folder / "assets";
  std::vector<std::string> ids;
  if (fs::is_directory(assets))
    for (const auto& entry : fs::recursive_directory_iterator(assets))
      if (entry.path().filename() == "norm_stats.json" && ids.size() < 1000)
        ids.push_back(entry.path().parent_path().lexically_relative(assets).string());
  std::ranges::sort(ids);
  ensure(!ids.empty(), Fault::checkpoint,
         "{} has no assets/<id>/norm_stats.json; copy openpi's assets folder beside the weights, "
         "or give --statistics FILE",
         folder.string());
  if (wanted.empty()) {
    ensure(ids.size() == 1, Fault::usage, "{} has statistics for {}; choose with --asset",
           folder.string(), fmt::join(ids, ", "));
    return assets / ids.front() / "norm_stats.json";
  }
  ensure(std::ranges::find(ids, wanted) != ids.end(), Fault::checkpoint,
         "{} has no assets/{}/norm_stats.json; there is: {}", folder.string(), wanted,
         fmt::join(ids, ", "));
  return assets / wanted / "norm_stats.json";
}

// Nobody told the robot's width: openpi takes every state and as much of the statistics, which are
// often padded to the model's width. Values that varied in training must be there.
void allow_narrow_states(OpenedModel& m) {
  PolicySpec& s = m.spec;
  const Normalizer& n = s.normalize().state;
  s.state_dim = n.known_dims(m.config.state_dim);
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
void add_statistics(const CheckpointFolder& folder, OpenedModel& m) {
  const OpenOptions& o = folder.options;
  PolicySpec& s = m.spec;
  Normalize& n = s.normalize();
  const bool pi05 = m.config.pi05();
  const NormMethod method = n.method.value_or(pi05 ? NormMethod::quantiles : NormMethod::mean_std);
  ensure(method == NormMethod::identity || method == NormMethod::mean_std ||
             method == NormMethod::quantiles,
         Fault::usage, "{} is normalised by {}, expected MEAN_STD, QUANTILES or IDENTITY",
         folder.path.string(), name(method));
  const bool none = o.statistics == "none" || (method == NormMethod::identity && !n.given);
  if (none) {
    n.state = n.action = {.family = Family::openpi};
  } else if (!o.statistics.empty() || !n.given) {
    std::string asset = o.asset.empty() ? n.asset.value_or("") : o.asset;
    // A checkpoint fine-tuned by a named config may hold statistics under its own id only.
    if (o.asset.empty() && std::ranges::any_of(folder.told, &Description::named) &&
        !fs::exists(folder.path / "assets" / asset / "norm_stats.json"))
      asset.clear();
    const Normalize read = read_norm_stats(
        o.statistics.empty() ? find_statistics(folder.path, asset) : fs::path(o.statistics),
        method == NormMethod::quantiles);
    n.state = read.state;
    n.action = read.action;
  }
  if (s.state_dim == 0) allow_narrow_states(m);
  if (s.action_dim == 0) s.action_dim = n.action.known_dims(m.config.action_dim);
}

// What would change the actions and is in no checkpoint of openpi.
void ask_for_transforms(const CheckpointFolder& folder, bool state_told, OpenedModel& m) {
  if (!folder.tells("/robot")) {
    m.notes.push_back(
        "no openpi training config was named (--config NAME) and no robot described (\"robot\" in "
        "tendon.json or --config FILE): no robot transform, absolute actions, prompt as this kind "
        "of model has it by default");
    return;
  }
  const bool named_robot = !folder.options.robot.empty();
  ensure(named_robot || folder.tells("/robot/transforms"), Fault::usage,
         "{} does not tell whether actions are relative to the state: say \"transforms\" in "
         "\"robot\", such as [{{\"type\": \"delta_actions\", \"mask\": [6, -1]}}, {{\"type\": "
         "\"normalize\"}}], or --config NAME",
         folder.path.string());
  ensure(named_robot || !m.config.pi05() || folder.options.state_in_prompt || state_told ||
             folder.tells("/robot/prompt/state"),
         Fault::usage,
         "{} does not tell whether its prompt has the state in it: say \"prompt\": {{\"state\": "
         "true}} in \"robot\", --state-in-prompt or --no-state-in-prompt",
         folder.path.string());
}

}  // namespace

std::optional<LoraSettings> read_lora_of_training(const fs::path& folder,
                                                  const std::vector<std::string>& modules) {
  const Metadata stored = read_metadata(folder, "/config/lora_config");
  const std::string& file = stored.file;
  const json& told = stored.value;
  if (!told.is_object() || told.value("enabled", json()) != true) return {};
  LoraSettings s{
      .file = file,
      .rank_stabilised = told.contains("use_rslora") && json_bool(told, "use_rslora", file)};
  for (const std::string& module : modules) {
    const std::vector<std::string> keys = lora_keys(module);
    const auto key = std::ranges::find_if(keys, [&](const std::string& k) {
      return told.contains(k + "alpha") && told.contains(k + "rank");
    });
    if (key == keys.end()) return {};
    s.alphas.emplace_back(module, json_number(told, *key + "alpha", file));
    s.ranks.emplace_back(module, json_int(told, *key + "rank", file));
    ensure(std::abs(s.alphas.back().second) <= 1e6, Fault::checkpoint,
           "{}: '{}alpha' is {}, expected a finite number of at most a million", file, *key,
           s.alphas.back().second);
  }
  return s;
}

void read_openpi(const CheckpointFolder& folder, OpenedModel& m) {
  m.layout = "openpi";
  m.weights =
      open_weights(weight_files(folder.named, folder.options, folder.config), folder.options);
  const Metadata trained = read_metadata(folder.path, "/config/model");
  const auto state_in_prompt = trained.get<bool>("discrete_state_input");
  m.config = config_from_weights(*m.weights, folder.tells("/vision/heads"));
  read_sizes(folder, trained, m.config);
  describe_sizes(m.config, folder.told);
  if (trained.get<int64_t>("action_horizon") || trained.get<int64_t>("max_token_len"))
    m.notes.push_back(
        fmt::format("{}: trained with {} actions per chunk and prompts of at most {} "
                    "tokens",
                    trained.file, m.config.horizon, m.config.max_token_len));
  m.spec = {.slots = camera_slots(3),
            .resizer = Family::openpi,
            .prompt = {.style = Family::openpi,
                       .state_in_prompt = m.config.pi05() && state_in_prompt.value_or(true),
                       .tokens_max = m.config.max_token_len},
            .transforms = {Normalize{{.family = Family::openpi}, {.family = Family::openpi}}},
            .state_dim = 0,
            .action_dim = 0};
  for (const std::string& slot : m.spec.slots) m.spec.cameras[slot] = slot;
  describe_robot(m.spec, folder.told);
  add_statistics(folder, m);
  ask_for_transforms(folder, state_in_prompt.has_value(), m);
}

}  // namespace tendon
