// The files of a folder that hold its weights.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/weights.h"
#include "policy/checkpoint_folder.h"
#include "tensor/check.h"

namespace tendon {
namespace fs = std::filesystem;
namespace {

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

}  // namespace

std::vector<fs::path> weight_files(const fs::path& folder) {
  refuse_adapters(folder);
  const fs::path single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  if (is_file(single)) return {single};
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
  }
  return {files.begin(), files.end()};
}

}  // namespace tendon
