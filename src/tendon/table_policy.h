// An engine as a policy of the demo's table.
#pragma once

#include <memory>

#include "demo/closed_loop.h"
#include "tendon/tendon.h"

namespace tendon {

// Throws Error(Fault::usage) for a policy of other state or action dims than the table's 3 and 3.
demo::Policy table_policy(std::shared_ptr<Engine> engine);

}  // namespace tendon
