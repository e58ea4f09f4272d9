#include "tendon/table_policy.h"

#include "tensor/check.h"

namespace tendon {

demo::Policy table_policy(std::shared_ptr<Engine> engine) {
  ensure(engine->action_names().size() == 3 && engine->state_dim() == 3, Fault::usage,
         "the table's gripper has 3 state values and 3 actions, this policy {} and {}",
         engine->state_dim(), engine->action_names().size());
  return [engine](const Observation& now, const demo::LeftOver& left, uint64_t seed) {
    InferOptions options{.seed = seed};
    if (left.rows > 0)
      options.previous = PreviousChunk{.actions = left.values,
                                       .rows = left.rows,
                                       .dim = 3,
                                       .delay = left.delay,
                                       .execution_horizon = left.guided};
    return engine->infer(now, options).values;
  };
}

}  // namespace tendon
