// How products and attention are cut for the device's grid: pure functions of the sizes.
#pragma once

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

struct Product {
  int64_t m = 1, k = 1, n = 1;  // m: rows of all batches
  Format x = Format::bf16, w = Format::bf16, y = Format::bf16;
  bool f32_accumulate = true;
};

// Blocks that cover the product with at most grid_x * grid_y cores and fit their L1: few rows are
// multicast to columns of cores (1D), more are cut both ways (2D). The library's own choice where
// neither fits. L1 of a core: two buffers of each operand's block, the output and, with f32
// accumulation, its partial sums.
Blocks plan_product(const Product& product, const Caps& caps);

int64_t l1_bytes_of(const Blocks& blocks, const Product& product);

// The largest chunks of 32 to 128 rows that divide the padded lengths and fit a core's L1.
Chunks plan_attention(int64_t queries, int64_t keys, int64_t head_width, const Caps& caps);

}  // namespace tendon::tt
