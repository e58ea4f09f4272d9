#include "policy/processors.h"

#include <array>
#include <cmath>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Registry names of lerobot, old and new.
const std::array<std::string, 13> kSteps = {"rename_observations_processor",
                                            "to_batch_processor",
                                            "pi0_new_line_processor",
                                            "tokenizer_processor",
                                            "device_processor",
                                            "relative_actions_processor",
                                            "delta_actions_processor",
                                            "absolute_actions_processor",
                                            "normalizer_processor",
                                            "unnormalizer_processor",
                                            "pi05_prepare_state_tokenizer_processor_step",
                                            "pi05_prepare_state_tokenizer_step",
                                            "pi05_prepare_state_processor_step"};

// One step of either file, with where it stands for messages.
struct Step {
  std::string name, where;
  json config;
  fs::path state_file;  // empty: none
};

std::vector<Step> read_steps(const fs::path& path) {
  ensure(is_file(path), Fault::checkpoint,
         "{} is missing; a checkpoint of lerobot 0.3 or older has none: migrate it with "
         "lerobot.processor.migrate_policy_normalization; of a newer one, download it again",
         path.string());
  const json root = read_json(path);
  const std::string file = path.string();
  ensure(root.is_object() && root.contains("steps") && root.at("steps").is_array(),
         Fault::checkpoint, "{}: 'steps' is missing or no list", file);
  std::vector<Step> steps;
  for (const json& item : root.at("steps")) {
    Step step;
    step.where = fmt::format("{}: step {}", file, steps.size());
    step.name =
        json_string(item, item.contains("registry_name") ? "registry_name" : "class", step.where);
    ensure(std::ranges::find(kSteps, step.name) != kSteps.end(), Fault::checkpoint,
           "{} is '{}', which this engine does not know; nearest: '{}'", step.where, step.name,
           nearest(step.name, kSteps));
    step.config = item.value("config", json::object());
    ensure(step.config.is_object(), Fault::checkpoint, "{}: 'config' is no object", step.where);
    if (item.contains("state_file") && !item.at("state_file").is_null()) {
      const fs::path name = json_string(item, "state_file", step.where);
      ensure(name.has_filename() && !name.has_parent_path(), Fault::checkpoint,
             "{}: state_file '{}' is not a file name in the same folder", step.where,
             name.string());
      step.state_file = path.parent_path() / name;
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

std::vector<std::string> strings(const json& config, const std::string& key,
                                 const std::string& where) {
  std::vector<std::string> list;
  if (!config.contains(key) || config.at(key).is_null()) return list;
  ensure(config.at(key).is_array(), Fault::checkpoint, "{}: '{}' is no list", where, key);
  for (const json& s : config.at(key)) {
    ensure(s.is_string(), Fault::checkpoint, "{}: '{}' holds {}", where, key, s.dump());
    list.push_back(s);
  }
  return list;
}

// lerobot reads statistics as float32, whatever type the file has.
std::vector<double> statistic(const SafetensorsFile& file, const std::string& name, int64_t dim) {
  const HostTensor* t = file.find(name);
  ensure(t != nullptr, Fault::checkpoint, "{} has no {}; the statistics of the data set are needed",
         file.name(), name);
  ensure(t->shape == Shape{dim}, Fault::checkpoint, "{}: {} is {}, expected [{}]", file.name(),
         name, to_string(t->shape), dim);
  std::vector<double> values;
  for (int64_t i = 0; i < dim; ++i) {
    values.push_back(static_cast<float>(number(*t, i)));
    ensure(std::isfinite(values.back()), Fault::checkpoint, "{}: {}[{}] is {}", file.name(), name,
           i, values.back());
  }
  return values;
}

// The same where nothing is computed from it: what is not sound is as good as absent.
std::vector<double> optional_statistic(const SafetensorsFile& file, const std::string& name,
                                       int64_t dim) {
  try {
    return statistic(file, name, dim);
  } catch (const Error&) {
    return {};
  }
}

// `kind`: "STATE" or "ACTION"; `feature`: the name of the statistics in the state file.
Normalizer read_normalizer(const Step& step, const std::string& kind, const std::string& feature,
                           int64_t dim, bool statistics) {
  Normalizer n{.family = Family::lerobot};
  const json map = step.config.value("norm_map", json::object());
  n.method = norm_method(json_string(map, kind, step.where + ": norm_map"), step.where);
  if (!statistics) n.method = NormMethod::identity;
  if (step.config.contains("eps")) n.eps = json_number(step.config, "eps", step.where);
  // Without normalisation only the quantiles are of use, and nobody misses them.
  if (!statistics || (n.method == NormMethod::identity && step.state_file.empty())) return n;
  ensure(!step.state_file.empty(), Fault::checkpoint,
         "{} has no state_file, so {} of {} has no statistics (a base checkpoint?); give them with "
         "--statistics norm_stats.json, or say --statistics none",
         step.where, name(n.method), feature);
  const auto file = SafetensorsFile::open(step.state_file);
  n.q01 = optional_statistic(*file, feature + ".q01", dim);
  n.q99 = optional_statistic(*file, feature + ".q99", dim);
  if (n.q01.empty() || n.q99.empty()) n.q01 = n.q99 = {};
  if (n.method == NormMethod::identity) return n;
  const auto [low, high] = statistic_names(n.method);
  n.centre = statistic(*file, feature + "." + low, dim);
  n.range = statistic(*file, feature + "." + high, dim);
  return n;
}

// Whether the step normalises an observation, as far as its keys say.
bool normalizes(const Step& step, const std::string& feature) {
  const std::string key = "normalize_observation_keys";
  if (!step.config.contains(key) || step.config.at(key).is_null()) return true;
  const std::vector<std::string> keys = strings(step.config, key, step.where);
  return std::ranges::find(keys, feature) != keys.end();
}

// Pictures without statistics stay as they are, whatever norm_map says.
void refuse_normalized_pictures(const Step& step, const std::string& mode) {
  if (norm_method(mode, step.where) == NormMethod::identity || step.state_file.empty()) return;
  const auto statistics = SafetensorsFile::open(step.state_file);
  const json features = step.config.value("features", json::object());
  for (const auto& [name, feature] : features.items()) {
    const bool picture = feature.is_object() && feature.value("type", json()) == "VISUAL";
    if (!picture || !normalizes(step, name)) continue;
    for (const HostTensor& t : statistics->tensors())
      ensure(!t.name.starts_with(name + "."), Fault::checkpoint,
             "{}: norm_map normalises the pictures of {} by {} (VISUAL), expected IDENTITY: this "
             "engine gives pictures to the network as they are; fine-tune with VISUAL IDENTITY, "
             "which is the default of pi0 and pi0.5",
             step.where, name, mode);
  }
}

void read_rename(const Step& step, Processors& p) {
  const json map = step.config.value("rename_map", json::object());
  ensure(map.is_object(), Fault::checkpoint, "{}: rename_map is no object", step.where);
  for (const auto& [from, to] : map.items()) {
    ensure(to.is_string(), Fault::checkpoint, "{}: rename_map.{} is {}", step.where, from,
           to.dump());
    p.rename[camera_name(from)] = camera_name(to);
  }
}

bool enabled(const Step& step) {
  return step.config.contains("enabled") && json_bool(step.config, "enabled", step.where);
}

void read_relative(const Step& step, Processors& p) {
  p.relative_step = true;
  p.relative = enabled(step);
  p.relative_excluded = strings(step.config, "exclude_joints", step.where);
  p.action_names = strings(step.config, "action_names", step.where);
}

void read_tokenizer(const Step& step, Processors& p) {
  const std::string side = step.config.value("padding_side", "right");
  ensure(side == "right", Fault::checkpoint, "{}: padding_side is '{}', expected 'right'",
         step.where, side);
  if (step.config.contains("max_length"))
    p.tokens_max = json_int(step.config, "max_length", step.where);
}

void read_prepare_state(const Step& step, Processors& p) {
  p.writes_state = true;
  if (step.config.contains("include_state_in_prompt"))
    p.state_in_prompt = json_bool(step.config, "include_state_in_prompt", step.where);
}

}  // namespace

std::string_view without_prefix(std::string_view key) {
  for (const std::string_view prefix : {"observation.images.", "observation/"})
    if (key.starts_with(prefix)) return key.substr(prefix.size());
  return key;
}

Processors read_processors(const fs::path& folder, const ProcessorNeeds& needs) {
  Processors p;
  bool normalized = false, unnormalized = false, absolute = false;
  for (const Step& step : read_steps(folder / "policy_preprocessor.json")) {
    if (step.name == "rename_observations_processor") read_rename(step, p);
    if (step.name == "tokenizer_processor") read_tokenizer(step, p);
    if (step.name.starts_with("pi05_prepare_state")) read_prepare_state(step, p);
    if (step.name == "relative_actions_processor" || step.name == "delta_actions_processor")
      read_relative(step, p);
    if (step.name != "normalizer_processor") continue;
    p.state = read_normalizer(step, "STATE", "observation.state", needs.state_dim,
                              needs.statistics && normalizes(step, "observation.state"));
    const json map = step.config.value("norm_map", json::object());
    if (map.contains("VISUAL")) p.visual = json_string(map, "VISUAL", step.where + ": norm_map");
    refuse_normalized_pictures(step, p.visual);
    normalized = true;
  }
  for (const Step& step : read_steps(folder / "policy_postprocessor.json")) {
    if (step.name == "absolute_actions_processor") absolute = enabled(step);
    if (step.name != "unnormalizer_processor") continue;
    p.action = read_normalizer(step, "ACTION", "action", needs.action_dim, needs.statistics);
    unnormalized = true;
  }
  ensure(normalized && unnormalized, Fault::checkpoint,
         "{}: no normalizer_processor in policy_preprocessor.json or no unnormalizer_processor in "
         "policy_postprocessor.json",
         folder.string());
  ensure(p.relative == absolute, Fault::checkpoint,
         "{}: 'enabled' is {} for relative_actions_processor of policy_preprocessor.json, but {} "
         "for absolute_actions_processor of policy_postprocessor.json; set both to how the model "
         "was trained",
         folder.string(), p.relative, absolute);
  return p;
}

}  // namespace tendon
