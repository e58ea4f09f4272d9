// Writes demonstrations of the table's teacher for train.py:
//
//     export_demonstrations FOLDER [EPISODES] [SEED]
//
// images.u8 [frames, 2, 63, 63, 3], state.f32 [frames, 3], actions.f32 [frames, 10, 3],
// prompt.i32 [frames] (a row of meta.json's prompts), episode.i32 [frames], objects.f32
// [frames, 3, 4]: x, y, colour and shape, the target first. Hands that shake a
// little and sometimes much carry the teacher off the ideal way; the stored actions are always what
// it would do from there with steady ones.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "demo/picture.h"
#include "teacher.h"
#include "tendon/error.h"

namespace {

using namespace tendon::demo;
using tendon::Image;

constexpr int kHorizon = 10;

class Files {
 public:
  explicit Files(const std::filesystem::path& folder) : folder_(folder) {
    std::filesystem::create_directories(folder);
    for (const char* name :
         {"images.u8", "state.f32", "actions.f32", "objects.f32", "prompt.i32", "episode.i32"})
      files_[name].open(folder / name, std::ios::binary);
  }

  void add(const World& world, const Task& task, int episode) {
    for (const View view : {View::top, View::gripper}) {
      const Image image = draw(world, view);
      write("images.u8", image.rgb.data(), image.rgb.size());
    }
    for (const double v : world.state()) number("state.f32", static_cast<float>(v));
    add_objects(world, task);
    World ahead = world;
    for (int i = 0; i < kHorizon; ++i) {
      const Action action = expert(ahead, task);
      for (const double v : action) number("actions.f32", static_cast<float>(v));
      ahead.step(action);
    }
    const auto row = prompts_.try_emplace(task.prompt(), static_cast<int>(prompts_.size()));
    number("prompt.i32", row.first->second);
    number("episode.i32", episode);
    ++frames_;
  }

  void finish() {
    std::vector<std::string> rows(prompts_.size());
    for (const auto& [prompt, row] : prompts_) rows[static_cast<size_t>(row)] = prompt;
    std::ofstream meta(folder_ / "meta.json");
    meta << "{\"frames\": " << frames_ << ", \"image\": " << kImageSize
         << ", \"cameras\": [\"top\", \"gripper\"], \"horizon\": " << kHorizon
         << ", \"state_dim\": 3, \"action_dim\": 3, \"prompts\": [";
    for (size_t i = 0; i < rows.size(); ++i) meta << (i ? ", \"" : "\"") << rows[i] << '"';
    meta << "]}\n";
    std::printf("%d frames, %zu prompts\n", frames_, rows.size());
  }

 private:
  void add_objects(const World& world, const Task& task) {
    std::vector<Object> objects = world.objects;
    std::stable_partition(objects.begin(), objects.end(),
                          [&](const Object& object) { return object.kind == task.target; });
    for (const Object& object : objects) {
      number("objects.f32", static_cast<float>(object.at.x));
      number("objects.f32", static_cast<float>(object.at.y));
      number("objects.f32", static_cast<float>(object.kind.colour));
      number("objects.f32", static_cast<float>(object.kind.shape));
    }
  }
  void write(const std::string& name, const void* bytes, size_t size) {
    files_[name].write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
  }
  template <typename T>
  void number(const std::string& name, T value) {
    write(name, &value, sizeof value);
  }

  std::filesystem::path folder_;
  std::map<std::string, std::ofstream> files_;
  std::map<std::string, int> prompts_;
  int frames_ = 0;
};

void demonstrate(Files& files, Random& random, int episode) {
  const Verb verb = random.below(5) < 2 ? Verb::reach : Verb::push;
  Episode e = new_episode(random, verb, Pairs::seen);
  int shaken = 0, rest = 0;  // steps left of a shake; steps since it was solved
  Action shake = {};
  const double stored = random.uniform(0.15, 0.3);  // share of the steps
  for (int i = 0; i < e.steps_max() && rest < 4; ++i) {
    if (random.uniform(0, 1) < stored) files.add(e.world, e.task, episode);
    Action action = expert(e.world, e.task);
    if (shaken == 0 && random.uniform(0, 1) < 0.06) {
      shaken = 1 + random.below(4);
      for (double& v : shake) v = random.uniform(-0.5, 0.5);
      shake[2] = random.below(3) == 0 ? 8 * shake[2] : 0;
    }
    for (size_t c = 0; c < 2; ++c) action[c] += random.uniform(-0.08, 0.08);
    if (shaken > 0) {
      --shaken;
      for (size_t c = 0; c < 3; ++c) action[c] = action[c] * 0.3 + shake[c];
    }
    e.world.step(action);
    if (solved(e.world, e.task)) ++rest;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') {
    std::fprintf(stderr, "usage: export_demonstrations FOLDER [EPISODES] [SEED]\n");
    return 2;
  }
  Files files(argv[1]);
  Random random(argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
  const int episodes = argc > 2 ? std::atoi(argv[2]) : 10000;
  for (int e = 0; e < episodes; ++e) demonstrate(files, random, e);
  files.finish();
}
