// The JSON files of a lerobot or openpi folder around sound weights. The input is config.json,
// policy_preprocessor.json and policy_postprocessor.json, each ended by a zero byte; a file that is
// missing is the real one.
#include "policy/checkpoint_folder.h"

#include <array>
#include <cstdlib>

#include "../target.h"

using namespace tendon;
namespace fs = std::filesystem;

namespace {

constexpr std::array kNames = {"config.json", "policy_preprocessor.json",
                               "policy_postprocessor.json"};
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
  void set(size_t i, const fs::path& target) {
    if (targets_[i] == target) return;
    fs::remove(path_ / kNames[i]);
    fs::create_symlink(target, path_ / kNames[i]);
    targets_[i] = target;
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  std::array<fs::path, kNames.size()> targets_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Folder folder;
  static const std::array<fuzz::MemoryFile, kNames.size()> files;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  for (size_t i = 0; i < kNames.size(); ++i) {
    const std::string_view part = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    files[i].fill(part);
    folder.set(i, part.empty() ? kReal / kNames[i] : files[i].path());
  }
  fuzz::taken({Fault::checkpoint, Fault::usage},
              [&] { open_folder(folder.path(), OpenOptions{}); });
  return 0;
}
