// PEFT's adapter_config.json. What it says is either understood, known to change no number of a
// trained adapter, or refused by name.
#include <algorithm>
#include <cmath>
#include <set>

#include "checkpoint/adapter.h"
#include "checkpoint/json.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr size_t kPatternsMax = 4096, kPatternBytesMax = 512;

// Read here, or of the training alone.
const std::set<std::string> kKnown = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora",
    "lora_bias", "modules_to_save", "init_lora_weights", "bias", "base_model_name_or_path",
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_core", "runtime_config",
    "qalora_group_size",
    // For Conv1D, of which these models have none: PEFT itself switches it off for others.
    "fan_in_fan_out"};

// Initialisations that leave the base weights as they are.
const std::set<nlohmann::json> kInitialisations = {true,       false,        nullptr,
                                                   "gaussian", "orthogonal", "eva"};

bool says_nothing(const nlohmann::json& value) {
  return value.is_null() || value == false ||
         ((value.is_object() || value.is_array()) && value.empty());
}

// PEFT matches regular expressions at the end of a module's name, each release in its own way;
// names are all that is read here.
std::string pattern(const std::string& key, const std::string& where) {
  std::string name;
  for (size_t i = 0; i < key.size(); ++i) {
    const bool escaped = key[i] == '\\' && i + 1 < key.size() && key[i + 1] == '.';
    const auto c = static_cast<unsigned char>(key[i]);
    ensure(escaped || std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.', Fault::checkpoint,
           "{}: '{}' is no plain module name; regular expressions are not read: merge the adapter "
           "with PEFT's merge_and_unload()",
           where, key.substr(0, 80));
    if (!escaped) name += key[i];
  }
  return name;
}

template <class T, class Read>
std::vector<std::pair<std::string, T>> patterns(const nlohmann::json& config,
                                                const std::string& key, const std::string& file,
                                                Read read) {
  const nlohmann::json object = config.value(key, nlohmann::json());
  std::vector<std::pair<std::string, T>> all;
  if (says_nothing(object)) return all;
  const std::string where = file + ": " + key;
  ensure(object.is_object() && object.size() <= kPatternsMax, Fault::checkpoint,
         "{} is no object of at most {} modules", where, kPatternsMax);
  for (const auto& entry : object.items()) {
    ensure(entry.key().size() <= kPatternBytesMax, Fault::checkpoint,
           "{}: a name of {} bytes, at most {} are read", where, entry.key().size(),
           kPatternBytesMax);
    all.emplace_back(pattern(entry.key(), where), read(object, entry.key(), where));
  }
  return all;
}

double checked_alpha(const nlohmann::json& object, const std::string& key,
                     const std::string& file) {
  const double alpha = json_number(object, key, file);
  ensure(std::isfinite(alpha) && std::abs(alpha) <= 1e6, Fault::checkpoint,
         "{}: '{}' is {}, expected a finite number of at most a million", file, key, alpha);
  return alpha;
}

int64_t checked_rank(const nlohmann::json& object, const std::string& key,
                     const std::string& file) {
  const int64_t rank = json_int(object, key, file);
  ensure(rank >= 1 && rank <= 1 << 20, Fault::checkpoint,
         "{}: '{}' is {}, expected a rank of 1 to {}", file, key, rank, 1 << 20);
  return rank;
}

std::vector<std::string> modules(const nlohmann::json& config, const std::string& file) {
  const nlohmann::json list = config.value("modules_to_save", nlohmann::json());
  if (says_nothing(list)) return {};
  ensure(list.is_array() && list.size() <= kPatternsMax &&
             std::ranges::all_of(list, [](const nlohmann::json& name) { return name.is_string(); }),
         Fault::checkpoint, "{}: 'modules_to_save' is no list of at most {} names", file,
         kPatternsMax);
  return list.get<std::vector<std::string>>();
}

}  // namespace

LoraSettings read_adapter_config(const std::filesystem::path& path) {
  const std::string file = path.string();
  const nlohmann::json config = read_json(path, 4 << 20);
  ensure(config.is_object(), Fault::checkpoint, "{}: expected an object, got {}", file,
         config.type_name());
  const nlohmann::json type = config.value("peft_type", nlohmann::json());
  ensure(type == "LORA", Fault::checkpoint,
         "{}: peft_type is {}, only LORA is merged here; merge it with PEFT's merge_and_unload()",
         file, type.dump(-1, ' ', true).substr(0, 60));
  for (const auto& entry : config.items())
    ensure(kKnown.contains(entry.key()) || says_nothing(entry.value()), Fault::checkpoint,
           "{}: {} is {}, which may change the actions and is not known here; merge the adapter "
           "with PEFT's merge_and_unload()",
           file, entry.key(), entry.value().dump(-1, ' ', true).substr(0, 60));
  const nlohmann::json start = config.value("init_lora_weights", nlohmann::json());
  ensure(kInitialisations.contains(start), Fault::checkpoint,
         "{}: init_lora_weights is {}, which changes the base weights before training begins; save "
         "the adapter with path_initial_model_for_weight_conversion, or merge it with PEFT's "
         "merge_and_unload()",
         file, start.dump(-1, ' ', true).substr(0, 60));
  const auto flag = [&](const char* key) {
    return !config.value(key, nlohmann::json()).is_null() && json_bool(config, key, file);
  };
  LoraSettings s{.file = file,
                 .rank_stabilised = flag("use_rslora"),
                 .dora = flag("use_dora"),
                 .bias = flag("lora_bias"),
                 .alphas = patterns<double>(config, "alpha_pattern", file, checked_alpha),
                 .ranks = patterns<int64_t>(config, "rank_pattern", file, checked_rank),
                 .whole = modules(config, file)};
  if (config.contains("lora_alpha")) s.alpha = checked_alpha(config, "lora_alpha", file);
  if (config.contains("r")) s.rank = checked_rank(config, "r", file);
  const nlohmann::json base = config.value("base_model_name_or_path", nlohmann::json());
  if (base.is_string()) s.base = base.get<std::string>().substr(0, 200);
  ensure(!(s.dora && s.bias), Fault::checkpoint,
         "{}: use_dora and lora_bias together, which PEFT itself merges to another model than it "
         "runs",
         file);
  return s;
}

}  // namespace tendon
