// One observation in, one chunk of actions out.
//
//   first_actions [demo:pi05]
#include <cstdio>
#include <tendon/tendon.h>

int main(int argc, char** argv) {
  try {
    tendon::Engine engine = tendon::Engine::open(argc > 1 ? argv[1] : "demo");
    const tendon::Observation observation = tendon::demo_observation();
    const tendon::Actions actions = engine.infer(observation, {.seed = 1});
    for (int64_t d = 0; d < actions.dim; ++d)
      std::printf("%s: %.4f\n", engine.action_names()[static_cast<size_t>(d)].c_str(),
                  actions.values[static_cast<size_t>(d)]);
    std::printf("%.1f ms\n", actions.times.total_ms);
  } catch (const tendon::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.fault());
  }
}
