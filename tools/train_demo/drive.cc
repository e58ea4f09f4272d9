// Lends the table to a policy in another program, over standard input and output:
//
//     drive_table SEED reach|push seen|unseen
//
// First a line with the prompt. Then, until the episode is over, per chunk: one byte (0 going on, 1
// solved, 2 time is over), state [3] as f32, pictures [2, 63, 63, 3] as u8; answered by actions
// [5, 3] as f32, which are executed.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "demo/picture.h"

namespace {

using namespace tendon::demo;

constexpr size_t kRows = 5;

void write(const void* bytes, size_t size) {
  if (std::fwrite(bytes, 1, size, stdout) != size) std::exit(1);
}

void show(const World& world, uint8_t end) {
  write(&end, 1);
  for (const double v : world.state()) {
    const auto narrow = static_cast<float>(v);
    write(&narrow, sizeof narrow);
  }
  for (const View view : {View::top, View::gripper}) {
    const tendon::Image image = draw(world, view);
    write(image.rgb.data(), image.rgb.size());
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: drive_table SEED reach|push seen|unseen\n");
    return 2;
  }
  const Trial trial = {
      .seed = std::strtoull(argv[1], nullptr, 10),
      .verb = std::string_view(argv[2]) == "push" ? Verb::push : Verb::reach,
      .pairs = std::string_view(argv[3]) == "unseen" ? Pairs::held_out : Pairs::seen};
  const Episode episode = trial.episode();
  World world = episode.world;
  std::printf("%s\n", episode.task.prompt().c_str());
  for (int step = 0; step < episode.steps_max();) {
    show(world, 0);
    std::array<std::array<float, 3>, kRows> actions = {};
    if (std::fread(&actions, 1, sizeof actions, stdin) != sizeof actions) return 1;
    for (size_t i = 0; i < kRows && step < episode.steps_max(); ++i, ++step) {
      world.step({actions[i][0], actions[i][1], actions[i][2]});
      if (!solved(world, episode.task)) continue;
      show(world, 1);
      return 0;
    }
  }
  show(world, 2);
}
