// A robot's two threads: one asks a policy server for chunks of actions, one executes an action ten
// times a second and holds while it has none. It sends what `tendon serve demo` takes, pictures of
// an empty table, always the same. A robot has cameras, a state and the name of a layout of its
// own.
//
//   robot_client [ws://HOST:PORT [PROMPT]]
#include <tendon/client.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kControlHz = 10;
std::atomic<bool> stopped = false;

tendon::Observation empty_table() {
  const tendon::Image grey{
      .height = 64, .width = 64, .rgb = std::vector<uint8_t>(3 * 64 * 64, 128)};
  return {.images = {{"top", grey}, {"gripper", grey}},
          .prompt = "reach the red disc",
          .state = {0, 0, 0}};
}

// Asks for one chunk after the other. A robot would take its own pictures and joints here.
void ask(const std::string& url, const tendon::Observation& observation,
         tendon::ActionQueue& queue) {
  tendon::PolicyClient policy(url);
  std::printf("connected to %s%s\n", policy.policy().model.c_str(),
              policy.policy().demo ? ": no policy for a real robot" : "");
  while (!stopped) {
    const tendon::ActionQueue::Mark mark = queue.mark();
    const tendon::RemoteOptions guidance = queue.guidance(kControlHz, mark);
    queue.push(policy.infer(observation, "lerobot", guidance), mark);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string url = argc > 1 ? argv[1] : "localhost:8000";
  tendon::Observation observation = empty_table();
  if (argc > 2) observation.prompt = argv[2];
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { stopped = true; });
  tendon::ActionQueue queue;
  std::thread network([&] {
    while (!stopped) {
      try {
        ask(url, observation, queue);
      } catch (const tendon::Error& error) {  // the queue runs empty and the robot holds
        std::fprintf(stderr, "%s\n", error.what());
        std::this_thread::sleep_for(std::chrono::seconds(1));
      }
    }
  });
  int executed = 0, held = 0;
  for (Clock::time_point tick = Clock::now(); !stopped;) {
    if (const auto action = queue.pop())
      ++executed;  // robot.move(*action)
    else
      ++held;  // robot.hold(): an old action must not be repeated
    if ((executed + held) % kControlHz == 0) std::printf("%d moved, %d held\n", executed, held);
    // A tick that was missed is not made up for: two actions at once are a jerk.
    tick = std::max(tick + std::chrono::milliseconds(1000 / kControlHz), Clock::now());
    std::this_thread::sleep_until(tick);
  }
  network.join();
}
