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

int64_t rows(const std::vector<double>& chunk) { return std::ssize(chunk) / 3; }

// For real-time chunking: the rows of a chunk from `next` on, which were not executed yet.
std::optional<PreviousChunk> left_over(const std::vector<double>& chunk, int64_t next,
                                       const LoopOptions& o) {
  const int64_t left = rows(chunk) - next;
  if (!o.guided || left <= 0) return {};
  return PreviousChunk{.actions = {chunk.begin() + 3 * next, chunk.end()},
                       .rows = left,
                       .dim = 3,
                       .delay = std::min<int64_t>(o.delay, left),
                       .execution_horizon = std::min<int64_t>(o.delay + o.guided_rows, left)};
}

}  // namespace

Record run_episode(const Episode& episode, const Policy& policy, const LoopOptions& o,
                   uint64_t seed) {
  Record record;
  record.episode = episode;
  World world = episode.world;
  const std::string prompt = o.prompt.empty() ? episode.task.prompt() : o.prompt;
  std::vector<double> chunk, coming;  // that is executed, and that is under way
  int64_t next = 0;                   // row of `chunk`
  Random noise(seed);
  for (int step = 0; step < episode.steps_max() && !record.solved; ++step) {
    if (step % o.rows == 0) {
      coming = policy(seen(world, prompt, o), left_over(chunk, next, o), noise.bits() >> 11);
      ensure(rows(coming) >= o.delay + o.rows, Fault::input,
             "a chunk has {} actions, but {} of latency and {} to execute were asked for",
             rows(coming), o.delay, o.rows);
      ++record.chunks;
    }
    if (step % o.rows == o.delay) {
      if (next < rows(chunk)) {  // how far the new chunk lies from where the old one would go on
        const Action old = row(chunk, next), fresh = row(coming, o.delay);
        record.largest_jump =
            std::max(record.largest_jump, std::hypot(fresh[0] - old[0], fresh[1] - old[1]));
      }
      chunk.swap(coming);
      next = o.delay;
    }
    const Action action = next < rows(chunk) ? row(chunk, next++) : Action{};
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
