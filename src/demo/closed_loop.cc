#include "demo/closed_loop.h"

#include <algorithm>
#include <cmath>

#include "demo/picture.h"
#include "tensor/check.h"

namespace tendon::demo {
namespace {

constexpr double k95 = 1.959963984540054;  // standard normal quantile of 97.5 %

Action row(const std::vector<double>& chunk, int64_t index) {
  const auto at = static_cast<size_t>(3 * index);
  return {chunk[at], chunk[at + 1], chunk[at + 2]};
}

Observation seen(const World& world, const std::string& prompt, const LoopOptions& o) {
  Observation now = observe(world, prompt);
  if (o.blank_images)
    for (auto& [name, image] : now.images) std::ranges::fill(image.rgb.owned(), uint8_t{0});
  if (o.zero_state) std::ranges::fill(now.state, 0.0);
  return now;
}

// One end of Wilson's interval.
double wilson(const Rate& rate, double side) {
  const double n = rate.episodes, p = rate.rate(), z2 = k95 * k95;
  const double half = k95 * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  return (p + z2 / (2 * n) + side * half) / (1 + z2 / n);
}

// The chunk that is being executed and the one that is under way.
class Running {
 public:
  Running(const Policy& policy, const LoopOptions& options) : policy_(policy), o_(options) {}

  void ask(const Observation& now, uint64_t seed) {
    std::optional<PreviousChunk> left;
    if (const int64_t count = rows() - next_; o_.guided && count > 0)
      left =
          PreviousChunk{.actions = {chunk_.begin() + 3 * next_, chunk_.end()},
                        .rows = count,
                        .dim = 3,
                        .delay = std::min<int64_t>(o_.delay, count),
                        .execution_horizon = std::min<int64_t>(o_.delay + o_.guided_rows, count)};
    coming_ = policy_(now, left, seed);
    const auto rows = std::ssize(coming_) / 3;
    ensure(rows >= o_.delay + o_.rows, Fault::input,
           "a chunk has {} actions, but {} of latency and {} to execute were asked for", rows,
           o_.delay, o_.rows);
  }

  // How far the new chunk lies from where the old one would have gone on.
  double replace() {
    double jump = 0;
    if (next_ < rows()) {
      const Action old = row(chunk_, next_), fresh = row(coming_, o_.delay);
      jump = std::hypot(fresh[0] - old[0], fresh[1] - old[1]);
    }
    chunk_ = std::move(coming_);
    next_ = o_.delay;
    return jump;
  }

  Action pop() { return next_ < rows() ? row(chunk_, next_++) : Action{}; }

 private:
  int64_t rows() const { return std::ssize(chunk_) / 3; }

  const Policy& policy_;
  const LoopOptions& o_;
  std::vector<double> chunk_, coming_;
  int64_t next_ = 0;
};

}  // namespace

Record run_episode(const Episode& episode, const Policy& policy, const LoopOptions& o,
                   uint64_t seed) {
  Record record;
  record.episode = episode;
  World world = episode.world;
  const std::string prompt = o.prompt.empty() ? episode.task.prompt() : o.prompt;
  Running running(policy, o);
  Random noise(seed);
  for (int step = 0; step < episode.steps_max() && !record.solved; ++step) {
    if (step % o.rows == 0) {
      running.ask(seen(world, prompt, o), noise.bits() >> 11);
      ++record.chunks;
    }
    if (step % o.rows == o.delay)
      record.largest_jump = std::max(record.largest_jump, running.replace());
    const Action action = running.pop();
    world.step(action);
    record.worlds.push_back(world);
    record.actions.push_back(action);
    record.solved = solved(world, episode.task);
    if (o.watch) o.watch(record);
  }
  return record;
}

double Rate::low() const { return episodes == 0 ? 0 : std::max(0.0, wilson(*this, -1)); }

double Rate::high() const { return episodes == 0 ? 1 : std::min(1.0, wilson(*this, 1)); }

}  // namespace tendon::demo
