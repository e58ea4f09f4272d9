// What a test may ask of the fake device besides TtApi: how much memory its allocator counts.
#pragma once

#include <cstdint>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// Bytes of all tensors alive, also those that only a trace keeps; L1 over all cores.
struct FakeUse {
  int64_t dram = 0, dram_peak = 0, l1 = 0, l1_peak = 0;
  int64_t tensors = 0;  // that have a id
};

// Throws Error(Fault::internal) for another provider.
FakeUse fake_use(const TtApi& device);

}  // namespace tendon::tt
