// How products and attention are cut for the device's grid: pure functions of the sizes.
#pragma once

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// Bytes of L1 that the buffers of a linear (by its blocks) or of attention (by its chunks) take of
// a core, on a device with so many. Read off ttnn 0.81.1, to the byte.
int64_t l1_bytes(const Request& request, InputSpecs inputs, int64_t cores);

// Bytes that an interleaved tensor takes of every core: its tiles or rows are dealt out in turn,
// and all cores set aside as much as the first one.
int64_t bytes_per_core(const Spec& spec, int64_t cores);

// Blocks that cover the linear with at most grid_x * grid_y cores and fit their L1: few rows are
// multicast to columns of cores (1D), more are cut both ways (2D). The library's own choice where
// neither fits.
Blocks plan_blocks(Request linear, InputSpecs inputs, const Caps& caps);

// The largest chunks of 32 to 128 rows that divide the padded lengths and fit a core's L1.
Chunks plan_chunks(Request attention, InputSpecs inputs, const Caps& caps);

}  // namespace tendon::tt
