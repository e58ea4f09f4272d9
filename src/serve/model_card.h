// What the server knows about the policy it serves: facts to check requests against and to tell
// clients, and the one function that answers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tendon/client.h"
#include "tendon/tendon.h"

namespace tendon {

// Cameras are as the robot calls them, in the model's order; of a model's path only the last part.
struct ModelCard : RemotePolicy {
  std::string backend, method, version;
  int64_t action_dim = 0, state_dim = 0, model_action_dim = 0, steps = 0;
  std::optional<int64_t> state_dim_min;  // a state may have as few values
  bool action_ranges = false;            // q01 and q99 of the actions are known
  bool default_prompt = false;           // there is one: requests may come without
  bool joint_positions = false;          // DROID: actions are positions, else velocities
  // Accepted beside `cameras`: the model's own names, second ones, those that it does not use.
  std::vector<std::string> other_cameras;
  std::vector<std::string> notes;
  double load_ms = 0, warm_up_ms = 0;
};

// What there is to know of an opened model before it has run.
ModelCard model_card(const std::string& model, Engine& engine);

struct ServedPolicy {
  ModelCard card;
  std::function<std::vector<Actions>(std::span<const BatchRow>)> infer;  // Engine::infer_batch
};

// Told while a policy is opened; either may be empty.
struct Opening {
  std::function<void(const LoadProgress&)> loading;
  std::function<void()> warming;  // the weights are there, the first run begins
};

// Opens `model`, runs it once on an empty scene (so that the first client does not pay for what a
// backend does at first) and describes it. Throws what Engine::open and Engine::infer throw.
ServedPolicy open_served(const std::string& model, OpenOptions options,
                         const Opening& opening = {});

}  // namespace tendon
