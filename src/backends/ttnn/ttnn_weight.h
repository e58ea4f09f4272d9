// Checkpoint matrices on the device: transposed for the library's linear, both axes padded with
// zeros to whole tiles, the columns of attention heads moved to their places.
#pragma once

#include "backends/ttnn/forms.h"
#include "ops/kernels.h"

namespace tendon::tt {

struct TtWeight final : PreparedWeight {
  std::vector<TensorRef> matrices;  // [1, 1, inputs, outputs]; gate and up apart; a table row-major
  TensorRef bias;                   // [1, 1, 1, outputs] or empty
  HeadColumns inputs, outputs;

  int64_t bytes() const override;
};

std::shared_ptr<const TtWeight> prepare_weight(Device& device, const WeightParts& parts,
                                               Format format);

inline const TtWeight& weight(const Weight& w) { return static_cast<const TtWeight&>(*w.native); }

}  // namespace tendon::tt
