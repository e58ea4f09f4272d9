// The JSON files of a lerobot or openpi folder around sound weights, and an adapter beside them.
// The input is config.json, policy_preprocessor.json, policy_postprocessor.json and
// adapter_config.json, each ended by a zero byte, and adapter_model.safetensors. A file that is
// missing is the real one; without adapter_config.json there is no adapter, and beside one its
// weights are a sound rank of 2.
#include "policy/checkpoint_folder.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "../target.h"

using namespace tendon;
namespace fs = std::filesystem;

namespace {

constexpr std::array kNames = {"config.json", "policy_preprocessor.json",
                               "policy_postprocessor.json", "adapter_config.json",
                               "adapter_model.safetensors"};
constexpr size_t kSettings = 3, kAdapter = 4;
const fs::path kReal = TENDON_FUZZ_FOLDER;

// A folder that looks like the real one, whose JSON files can be exchanged.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "tendon_fuzz_XXXXXX").string();
    fuzz::require(mkdtemp(name.data()) != nullptr);
    path_ = name;
    for (const auto& entry : fs::directory_iterator(kReal))
      fs::create_symlink(entry.path(), path_ / entry.path().filename());
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  // An empty target: there is no such file.
  void set(size_t i, const fs::path& target) {
    if (targets_[i] == target) return;
    fs::remove(path_ / kNames[i]);
    if (!target.empty()) fs::create_symlink(target, path_ / kNames[i]);
    targets_[i] = target;
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  std::array<fs::path, kNames.size()> targets_;
};

// Factors of one weight of the real folder, in `folder`.
fs::path sound_adapter(const fs::path& folder) {
  const fs::path path = folder / "rank_2.safetensors";
  if (fs::exists(path)) return path;
  const auto weights = SafetensorsFile::open(kReal / "model.safetensors");
  const auto is_query = [](const HostTensor& t) { return t.name.ends_with("q_proj.weight"); };
  const HostTensor& w = *std::ranges::find_if(weights->tensors(), is_query);
  const std::string module = w.name.substr(0, w.name.rfind('.'));
  const auto filled = [&](const char* end, const Shape& shape) {
    return host_tensor("base_model.model." + module + end, shape,
                       std::vector<float>(static_cast<size_t>(shape.count()), 0.25f));
  };
  write_safetensors(path, std::vector{filled(".lora_A.weight", {2, w.shape[1]}),
                                      filled(".lora_B.weight", {w.shape[0], 2})});
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Folder folder;
  static const std::array<fuzz::MemoryFile, kNames.size()> files;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  bool adapted = false;
  for (size_t i = 0; i < kNames.size(); ++i) {
    const std::string_view part = i == kAdapter ? rest : rest.substr(0, rest.find('\0'));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    files[i].fill(part);
    if (i == kSettings) adapted = !part.empty();
    fs::path usual = kReal / kNames[i];
    if (i >= kSettings)
      usual = i == kAdapter && adapted ? sound_adapter(folder.path()) : fs::path();
    const bool given = !part.empty() && (i < kSettings || adapted);
    folder.set(i, given ? files[i].path() : usual);
  }
  fuzz::taken({Fault::checkpoint, Fault::usage}, [&] {
    const OpenedModel m =
        open_folder(folder.path(), {.base = adapted ? folder.path().string() : std::string()});
    if (const AdapterSummary* adapter = m.weights->adapter())
      for (const std::string& name : adapter->weights)
        m.weights->get(name, m.weights->tensors().at(name).shape);
  });
  return 0;
}
