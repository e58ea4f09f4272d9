// Where the columns of attention heads lie on the device: every head starts at a whole tile, and
// its two halves start at the two halves of its padded width, so that rotary embedding, which pairs
// column j with column j + width / 2, works on the padded head. The rest is zero.
#pragma once

#include "backends/ttnn/device.h"

namespace tendon::tt {

struct HeadColumns {
  int64_t width = 0;  // 0: no heads, columns lie as they are

  int64_t padded() const { return round_up(width); }
  // Column `j` of all heads, on the device.
  int64_t place(int64_t j) const {
    if (width == 0) return j;
    const int64_t head = j / width, c = j % width, half = (width + 1) / 2;
    return head * padded() + (c < half ? c : padded() / 2 + c - half);
  }
  int64_t count(int64_t columns) const {  // columns on the device
    return width == 0 ? round_up(columns) : columns / width * padded();
  }
};

}  // namespace tendon::tt
