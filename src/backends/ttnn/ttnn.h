// The ttnn backend: the policy's ops as calls of Tenstorrent's TTNN library. Everything that has to
// be known about TTNN is here: padding to tiles, layouts, head columns, masks, blocks, fusion.
#pragma once

#include <memory>

#include "backends/ttnn/tt_api.h"
#include "backends/ttnn/use.h"
#include "ops/kernels.h"

namespace tendon {

std::unique_ptr<Kernels> make_ttnn_backend(std::unique_ptr<tt::TtApi> device,
                                           const tt::Use& use = tt::use_of("bf16", {}));

}  // namespace tendon
