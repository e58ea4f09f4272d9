// Weights in panels, see kernels.h.
#pragma once

#include <memory>
#include <vector>

#include "backends/cpu/kernels.h"
#include "backends/cpu/thread_pool.h"
#include "ops/kernels.h"

namespace tendon::cpu {

struct PackedWeight final : PreparedWeight {
  Form form = Form::f32;
  int64_t outputs = 0, inputs = 0, words = 0, panels = 0;
  bool gated = false;                    // a panel holds 16 gate rows and their 16 up rows
  std::shared_ptr<const uint32_t> data;  // [panels][2][words][16]
  HostTensor stored;                     // the same bytes, as a tensor
  std::vector<float> bias;               // [outputs], or empty
  std::vector<float> column_scale;       // int8: [panels * 32], in the order of the panels
  std::vector<int32_t> column_sum;       // int8: the same, sums of the quantised row
  HostTensor table;                      // WeightKind::table: rows as they are

  int64_t bytes() const override { return 4 * panels * kPanel * words; }
  // "data" i32 [panels, 2, words, 16] and, of int8, "scale" f32 and "sum" i32 [panels * 32].
  std::vector<HostTensor> pieces() const override;
  const uint32_t* panel(int64_t p) const { return data.get() + p * kPanel * words; }
};

// Also takes pieces() back; throws Error(Fault::checkpoint) when they do not fit.
std::shared_ptr<const PackedWeight> pack_weight(const WeightParts& parts, Form form,
                                                ThreadPool& pool);

}  // namespace tendon::cpu
