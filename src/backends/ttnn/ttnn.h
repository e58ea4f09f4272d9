// The ttnn backend: the policy's ops as calls of Tenstorrent's TTNN library. Everything that has to
// be known about TTNN is here: padding to tiles, layouts, head columns, masks, blocks, fusion.
#pragma once

#include <memory>

#include "backends/ttnn/tt_api.h"
#include "ops/kernels.h"

namespace tendon {

enum class TtPrecision : uint8_t {
  bf16,
  bfp8,  // weights, q, k, v and the cache in bfp8_b; everything else bf16
};

std::unique_ptr<Kernels> make_ttnn_backend(std::unique_ptr<tt::TtApi> device,
                                           TtPrecision precision = TtPrecision::bf16);

}  // namespace tendon
