// What the library refuses. Read off ttnn 0.81.1 on a mock Wormhole, L1 to the byte; some rules
// here are narrower than the library's.
#pragma once

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// Of every core's L1, what the firmware and the kernels' arguments take. Tensors begin above it.
constexpr int64_t kL1Base = 105'824;

// The part of the device that one call may use.
struct CoreGrid {
  int64_t x = 0, y = 0;
  int64_t l1_bytes = 0;  // of a core, less what L1 tensors take
};

// Throws Error(Fault::internal) saying op, got and expected unless the library takes the call.
void check_legal(const Request& request, InputSpecs inputs, const CoreGrid& grid);

// Throws unless a tensor can have this spec at all.
void check_spec(const Spec& spec);

// Bytes that an interleaved tensor takes of every core: its tiles or rows are dealt out in turn,
// and all cores set aside as much as the first one.
int64_t bytes_per_core(const Spec& spec, int64_t cores);

}  // namespace tendon::tt
