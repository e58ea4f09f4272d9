// An engine as a policy of the demo's table.
#pragma once

#include <memory>

#include "demo/closed_loop.h"
#include "tendon/tendon.h"
#include "tensor/check.h"

namespace tendon {

// Throws Error(Fault::usage) for a policy of other state or action dims than the table's 3 and 3.
inline demo::Policy table_policy(std::shared_ptr<Engine> engine) {
  ensure(engine->action_names().size() == 3 && engine->state_dim() == 3, Fault::usage,
         "the table's gripper has 3 state values and 3 actions, this policy {} and {}",
         engine->state_dim(), engine->action_names().size());
  return [engine](const Observation& now, const std::optional<PreviousChunk>& left, uint64_t seed) {
    return engine->infer(now, {.seed = seed, .previous = left}).values;
  };
}

}  // namespace tendon
