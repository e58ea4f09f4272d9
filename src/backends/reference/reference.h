// The reference backend: every op in its plainest form, float, on the host. It is the executable
// specification that other backends are compared with.
#pragma once

#include <memory>

#include "ops/kernels.h"

namespace tendon {

struct ReferenceOptions {
  int threads = 0;  // 0: one per core; the number never changes a result
};

std::unique_ptr<Kernels> make_reference_backend(const ReferenceOptions& options = {});

}  // namespace tendon
