// Robots with the C++ client, for fleet_test.py: each asks at its own phase, connects anew for
// every episode and after every failure, and says in one line of JSON what became of each attempt.
//
//   fleet_robot URL ROBOTS SECONDS HZ EPISODE_S TIMEOUT_S [rtc]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tendon/client.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr double kRetrySeconds = 0.02;
constexpr double kControlHz = 10;

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// An empty table; the state tells whose request it was.
tendon::Observation scene(int robot) {
  const tendon::Image grey{
      .height = 63, .width = 63, .rgb = std::vector<uint8_t>(size_t{3} * 63 * 63, 128)};
  return {.images = {{"top", grey}, {"gripper", grey}},
          .prompt = "reach the red disc",
          .state = {robot / 100.0, 0.5, 1}};
}

struct Options {
  std::string url;
  int robots;
  double seconds, hz, episode_s, timeout_s;
  bool rtc;
};

class Robot {
 public:
  Robot(const Options& options, int number, std::mutex& output)
      : options_(options), number_(number), output_(output), observation_(scene(number)) {}

  void run() {
    const auto period = std::chrono::duration<double>(1 / options_.hz);
    const auto at = [&](double periods) {
      return begin_ + std::chrono::duration_cast<Clock::duration>(periods * period);
    };
    const double phase = static_cast<double>(number_) / options_.robots;
    const Clock::time_point end = at(options_.seconds * options_.hz);
    for (int64_t id = 0; std::max(at(static_cast<double>(id) + phase), Clock::now()) < end; ++id) {
      std::this_thread::sleep_until(at(static_cast<double>(id) + phase));
      while (!ask(id)) std::this_thread::sleep_for(std::chrono::duration<double>(kRetrySeconds));
      queue_.pop();  // some of the chunk is executed before the next observation
      queue_.pop();
    }
  }

 private:
  bool ask(int64_t id) {
    nlohmann::json said = {
        {"robot", number_}, {"id", id}, {"begin", unix_seconds()}, {"ok", false}};
    try {
      if (!client_ || Clock::now() > episode_end_) {
        client_.reset();
        client_.emplace(options_.url,
                        tendon::PolicyClient::Options{.timeout_s = options_.timeout_s});
        episode_end_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                          std::chrono::duration<double>(options_.episode_s));
      }
      const tendon::ActionQueue::Mark mark = queue_.mark();
      tendon::RemoteOptions request;
      if (options_.rtc) request = queue_.guidance(kControlHz, mark);
      request.request_id = fmt::format("{}.{}", number_, id);
      const tendon::RemoteActions reply = client_->infer(observation_, "", request);
      queue_.push(reply, mark);
      const auto& timing = reply.server_timing;
      said.update({{"ok", true},
                   {"fingerprint", client_->policy().fingerprint},
                   {"replied_to", reply.request_id},
                   {"actions", reply.values},
                   {"previous", request.prev_chunk.values},
                   {"delay", request.inference_delay.value_or(-1)},
                   {"service_ms", timing.at("decode_ms") + timing.at("infer_ms")}});
    } catch (const tendon::Error& error) {
      client_.reset();
      said["error"] = error.what();
    }
    said["end"] = unix_seconds();
    const std::lock_guard lock(output_);
    fmt::print("{}\n", said.dump());
    std::fflush(stdout);
    return said["ok"].get<bool>();
  }

  const Options& options_;
  const int number_;
  std::mutex& output_;
  const tendon::Observation observation_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point episode_end_{};
  std::optional<tendon::PolicyClient> client_;
  tendon::ActionQueue queue_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  const Options options{.url = argv[1],
                        .robots = std::stoi(argv[2]),
                        .seconds = std::stod(argv[3]),
                        .hz = std::stod(argv[4]),
                        .episode_s = std::stod(argv[5]),
                        .timeout_s = std::stod(argv[6]),
                        .rtc = argc > 7};
  std::mutex output;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(options.robots));
  for (int robot = 0; robot < options.robots; ++robot)
    threads.emplace_back([&, robot] { Robot(options, robot, output).run(); });
  for (std::thread& thread : threads) thread.join();
}
