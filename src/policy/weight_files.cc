// The files of a folder that hold its weights.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "checkpoint/adapter.h"
#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/weights.h"
#include "policy/checkpoint_folder.h"
#include "tensor/check.h"

namespace tendon {
namespace fs = std::filesystem;
namespace {

const char *kAdapter = "adapter_model.safetensors", *kSettings = "adapter_config.json";

// Adapters in other files than those of PEFT, or in folders where they have names: the first one,
// and whether it is such a folder.
struct ForeignAdapter {
  std::string path;
  bool named = false;
};

ForeignAdapter find_foreign_adapter(const fs::path& folder) {
  static const std::regex kNames(R"((^|[^a-z])(adapter|lora).*\.(json|safetensors|bin|pth?))",
                                 std::regex::icase);
  std::error_code none;  // of a folder that cannot be read, or is inside the library
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    const std::string name = entry.path().filename().string();
    const bool named = is_file(entry.path() / kSettings);
    if (named || (name != kAdapter && name != kSettings && std::regex_search(name, kNames)))
      return {entry.path().string(), named};
  }
  return {};
}

bool has_weights(const fs::path& folder) {
  return is_file(folder / "model.safetensors") || is_file(folder / "model.safetensors.index.json");
}

// The folder whose weights an adapter in `folder` changes: another one where `own` is false.
fs::path checked_base(const fs::path& folder, bool own, const WeightFiles& files,
                      const OpenOptions& o) {
  fs::path base = base_folder(o);
  std::error_code none;  // of a folder inside the library
  ensure(!own || fs::equivalent(base, folder, none), Fault::usage,
         "--base {}: {} has weights of its own", o.base, folder.string());
  ensure(!files.adapter.empty(), Fault::usage, "--base {}: {} has no {} that it is the base of",
         o.base, folder.string(), kAdapter);
  if (own) return folder;
  for (const char* name : {kAdapter, kSettings})
    ensure(!is_file(base / name), Fault::checkpoint, "{} {}", (base / name).string(), kMergeFirst);
  return base;
}

void refuse_lone_adapter(const WeightFiles& files) {
  const std::string base =
      files.adapter_settings.empty() ? "" : read_adapter_config(files.adapter_settings).base;
  fail(Fault::checkpoint,
       "{} {}; or say --base FOLDER with the weights that it was trained on{}, which tendon does "
       "not download",
       files.adapter.string(), kMergeFirst, base.empty() ? "" : fmt::format(" ('{}')", base));
}

// Of a training run or a download cache: "run/checkpoints/005000/pretrained_model". At most five.
std::vector<std::string> folders_with_weights(const fs::path& folder) {
  constexpr int kDepthMax = 4, kEntriesMax = 10'000;
  std::vector<std::string> found;
  std::error_code ec;
  fs::recursive_directory_iterator at(folder, fs::directory_options::skip_permission_denied, ec);
  for (int n = 0; !ec && at != fs::recursive_directory_iterator() && n < kEntriesMax;
       at.increment(ec), ++n) {
    if (at.depth() >= kDepthMax) at.disable_recursion_pending();
    const std::string name = at->path().filename().string();
    const std::string parent = at->path().parent_path().string();
    const bool weights = name == "model.safetensors" || name == "model.safetensors.index.json";
    if (weights && std::ranges::find(found, parent) == found.end()) found.push_back(parent);
  }
  std::ranges::sort(found);
  if (found.size() > 5) found.resize(5);
  return found;
}

// One file, or those that an index names.
void find_weights(const fs::path& folder, WeightFiles& found) {
  const fs::path single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  if (is_file(single)) {
    found.weights = {single};
    return;
  }
  if (!fs::exists(index)) {
    const std::vector<std::string> below = folders_with_weights(folder);
    ensure(below.empty(), Fault::checkpoint,
           "{} holds no model.safetensors itself; name the folder below it that does: {}",
           folder.string(), fmt::join(below, ", "));
    fail(Fault::checkpoint,
         "{} holds neither model.safetensors nor model.safetensors.index.json; is the download "
         "complete?",
         folder.string());
  }
  const nlohmann::json root = read_json(index);
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
    found.indexed.push_back(tensor);
  }
  found.index = index;
  found.weights = {files.begin(), files.end()};
}

using OpenFiles = std::vector<std::shared_ptr<const SafetensorsFile>>;

// Modules with LoRA factors among the weights.
std::vector<std::string> adapted_modules(const OpenFiles& weights) {
  std::vector<std::string> modules;
  for (const auto& file : weights)
    for (const HostTensor& t : file->tensors())
      if (AdapterKey key = adapter_key(t.name, file->name()); key.role == AdapterKey::Role::a)
        modules.push_back(std::move(key.module));
  return modules;
}

// lerobot would run the weights, PEFT merge the adapter; and the weights may be the merged ones.
void refuse_uncertain(const WeightFiles& files, const OpenFiles& weights) {
  for (const auto& file : weights)
    for (const HostTensor& t : file->tensors())
      if (adapter_key(t.name, file->name()).role == AdapterKey::Role::wrapped) return;
  const std::string folder = files.adapter.parent_path().string();
  fail(Fault::checkpoint,
       "{} is a LoRA adapter beside complete weights, and config.json does not say use_peft: "
       "whether it belongs to them or is in them already cannot be seen, and the actions are "
       "others. Say --base {} to merge it into these weights, or --lora-scale 0 to run them as "
       "they are",
       files.adapter.string(), folder);
}

}  // namespace

fs::path base_folder(const OpenOptions& o) {
  if (is_demo(o.base)) return demo_folder(o.base);
  ensure(fs::is_directory(o.base), Fault::usage,
         "--base {} is no folder; it is a checkpoint folder of lerobot or openpi, or a demo",
         o.base);
  return o.base;
}

WeightFiles weight_files(const fs::path& folder, const OpenOptions& o,
                         const nlohmann::json& config) {
  WeightFiles files;
  const ForeignAdapter foreign = find_foreign_adapter(folder);
  if (is_file(folder / kAdapter)) files.adapter = folder / kAdapter;
  if (is_file(folder / kSettings)) files.adapter_settings = folder / kSettings;
  const bool unwanted = o.lora_scale == 0.;
  ensure(foreign.path.empty() || unwanted, Fault::checkpoint,
         "{} {}{}; or say --lora-scale 0 to run the weights of {} without it", foreign.path,
         kMergeFirst,
         foreign.named
             ? fmt::format("; or name that folder as the model, with --base {}", folder.string())
             : "",
         folder.string());
  const bool own = has_weights(folder);
  if (!own && o.base.empty() && !files.adapter.empty()) refuse_lone_adapter(files);
  find_weights(o.base.empty() ? folder : checked_base(folder, own, files, o), files);
  const bool use_peft = config.is_object() && config.value("use_peft", nlohmann::json()) == true;
  files.uncertain = own && !use_peft && o.base.empty() && !o.lora_scale && !files.adapter.empty();
  if (!unwanted) return files;
  files.left_out = !files.adapter.empty()            ? files.adapter.string()
                   : !files.adapter_settings.empty() ? files.adapter_settings.string()
                                                     : foreign.path;
  files.adapter.clear();
  files.adapter_settings.clear();
  return files;
}

std::unique_ptr<WeightSource> open_weights(const WeightFiles& files, const OpenOptions& o) {
  AdapterFiles adapter{.left_out = files.left_out};
  if (!files.adapter_settings.empty())
    adapter.settings = read_adapter_config(files.adapter_settings);
  adapter.settings.scale = o.lora_scale;
  ensure(!o.lora_scale || (std::isfinite(*o.lora_scale) && std::abs(*o.lora_scale) <= 1e6),
         Fault::usage, "--lora-scale {}: expected a finite number of at most a million",
         o.lora_scale.value_or(0));
  ensure(files.adapter.empty() || adapter.settings.known(), Fault::checkpoint, "{} without {} {}{}",
         files.adapter.string(), kSettings, kMergeFirst, kOrSayScale);
  OpenFiles weights;
  for (const fs::path& file : files.weights) weights.push_back(SafetensorsFile::open(file));
  if (const auto modules = adapted_modules(weights);
      !modules.empty() && files.adapter.empty() && !adapter.settings.known()) {
    const auto told = read_lora_of_training(files.weights.front().parent_path(), modules);
    adapter.settings = told.value_or(adapter.settings);
  }
  if (files.uncertain) refuse_uncertain(files, weights);
  if (!files.adapter.empty()) adapter.files.push_back(SafetensorsFile::open(files.adapter));
  for (const std::string& name : files.indexed) {
    const auto holds = [&](const auto& file) { return file->find(name) != nullptr; };
    ensure(std::ranges::any_of(weights, holds), Fault::checkpoint, "{}: no file holds {}",
           files.index.string(), name);
  }
  auto source = open_weights(weights, adapter);
  if (source->adapter()) return source;
  ensure(files.adapter_settings.empty(), Fault::checkpoint, "{} {}",
         files.adapter_settings.string(), kMergeFirst);
  ensure(files.adapter.empty(), Fault::checkpoint, "{} holds no tensor of an adapter",
         files.adapter.string());
  ensure(!o.lora_scale, Fault::usage, "--lora-scale: {} has no LoRA adapter",
         source->description());
  return source;
}

}  // namespace tendon
