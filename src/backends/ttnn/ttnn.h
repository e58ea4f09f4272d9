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

struct TtnnOptions {
  TtPrecision precision = TtPrecision::bf16;
  float hidden = -1e9f;        // what masks add to the score of a key that is not seen
  bool f32_accumulate = true;  // of products and norms
  bool own_blocks = true;      // plan_product's instead of the library's choice
  bool norms_in_l1 = true;     // where they fit
  bool traces = true;          // record and replay, on devices with fast dispatch
};

std::unique_ptr<Kernels> make_ttnn_backend(std::unique_ptr<tt::TtApi> device,
                                           const TtnnOptions& options = {});

}  // namespace tendon
