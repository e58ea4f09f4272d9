// The calls in f32 over logical, row-major values; each result is rounded once, at the end, to what
// the device's packer stores.
#pragma once

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

struct Operand {
  Spec spec;
  std::span<const float> values;  // empty: absent
};

// One vector per output. The request is legal (fake_rules.h), but for ids of an embedding beyond
// its table: those throw Error(Fault::internal). Bit-equal for every number of threads.
std::vector<std::vector<float>> compute(const Request& request, std::span<const Operand> inputs,
                                        std::span<const Spec> outputs, int threads);

// linear and attention, before they are rounded.
std::vector<float> linear(const Request& request, std::span<const Operand> inputs, int threads);
std::vector<float> attention(const Request& request, std::span<const Operand> inputs, int threads);

}  // namespace tendon::tt
