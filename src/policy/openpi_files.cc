// What openpi stores beside the weights: metadata.pt, which train_pytorch.py saves, and statistics.
#include <algorithm>
#include <cmath>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/pickle.h"
#include "policy/checkpoint_folder.h"
#include "tensor/check.h"

namespace tendon {
namespace fs = std::filesystem;
using nlohmann::json;

TrainedWith read_metadata(const fs::path& folder) {
  TrainedWith t{.file = (folder / "metadata.pt").string()};
  if (!is_file(t.file)) return t;
  json model;
  try {
    model = read_torch_file(t.file).value("/config/model"_json_pointer, json());
  } catch (const Error& error) {
    t.unread = error.what();
  } catch (const json::exception&) {
    t.unread = t.file + " holds no dictionary";
  }
  const auto integer = [&](const char* key, std::optional<int64_t>& to) {
    if (model.is_object() && model.contains(key) && model.at(key).is_number_integer())
      to = model.at(key).get<int64_t>();
  };
  const auto flag = [&](const char* key, std::optional<bool>& to) {
    if (model.is_object() && model.contains(key) && model.at(key).is_boolean())
      to = model.at(key).get<bool>();
  };
  integer("action_horizon", t.horizon);
  integer("max_token_len", t.max_token_len);
  integer("action_dim", t.action_dim);
  flag("discrete_state_input", t.state_in_prompt);
  flag("pi05", t.pi05);
  return t;
}

void apply(const TrainedWith& t, std::optional<int64_t> stated_horizon, Config& c) {
  const auto agree = [&](const char* key, const auto& trained, auto other, const char* source) {
    ensure(!trained || *trained == other, Fault::checkpoint,
           "{}: {} is {}, but {} {}; one of the files belongs to another model", t.file, key,
           trained.value_or(other), source, other);
  };
  agree("action_dim", t.action_dim, c.action_dim, "the tensors say");
  agree("pi05", t.pi05, c.pi05(), "of the tensors it is");
  if (stated_horizon) agree("action_horizon", t.horizon, *stated_horizon, "config.json says");
  c.horizon = t.horizon.value_or(c.horizon);
  c.max_token_len = t.max_token_len.value_or(c.max_token_len);
}

namespace {

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

}  // namespace

std::optional<LoraSettings> read_lora_of_training(const fs::path& folder,
                                                  const std::vector<std::string>& modules) {
  const std::string file = (folder / "metadata.pt").string();
  if (!is_file(file)) return {};
  json told;
  try {
    told = read_torch_file(file).value("/config/lora_config"_json_pointer, json());
  } catch (const Error&) {  // --lora-scale tells the same
    return {};
  } catch (const json::exception&) {
    return {};
  }
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

}  // namespace tendon
