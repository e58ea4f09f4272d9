// Policy and table in closed loop: observe, ask for a chunk, execute some of it, observe again.
#pragma once

#include <functional>
#include <optional>

#include "demo/world.h"
#include "tendon/types.h"

namespace tendon::demo {

// A chunk of actions [rows, 3] for an observation. `left` is what real-time chunking guides it by:
// actions of the running chunk that were not executed when the observation was taken. `seed` is
// that of the noise.
using Policy = std::function<std::vector<double>(
    const Observation&, const std::optional<PreviousChunk>& left, uint64_t seed)>;

// Everything that happened in an episode.
struct Record {
  Episode episode;              // as it began
  std::vector<World> worlds;    // after every step
  std::vector<Action> actions;  // that were executed, one per step
  int chunks = 0;
  bool solved = false;
  // The largest difference between the running chunk's next action and the new chunk's first where
  // one replaces the other, in table sides per second; 0 without such a moment.
  double largest_jump = 0;

  int steps() const { return static_cast<int>(actions.size()); }
  const World& world_after(int step) const {
    return step == 0 ? episode.world : worlds[static_cast<size_t>(step - 1)];
  }
  const World& world() const { return world_after(steps()); }
};

struct LoopOptions {
  std::string prompt;   // "": the task's own
  int rows = 5;         // of a chunk are executed
  int delay = 0;        // steps from an observation to the first action of its chunk
  bool guided = false;  // real-time chunking: what is left of a chunk is given
  int guided_rows = 1;  // beyond those of `delay`
  bool blank_images = false, zero_state = false;  // what does the policy use?
  std::function<void(const Record&)> watch;       // called after every step; may be empty
};

// Ends when the task is solved or the episode's steps are over. The gripper rests until the first
// chunk arrives. Throws what the policy throws, Fault::input for a chunk shorter than delay + rows.
Record run_episode(const Episode& episode, const Policy& policy, const LoopOptions& options,
                   uint64_t seed);

// Successes with Wilson's 95 % interval, all in [0, 1].
struct Rate {
  int episodes = 0, successes = 0;
  double rate() const { return episodes == 0 ? 0 : static_cast<double>(successes) / episodes; }
  double low() const;
  double high() const;
};

}  // namespace tendon::demo
