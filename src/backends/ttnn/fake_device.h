// What the fake device knows of the library: what it refuses and what it computes.
#pragma once

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// ---- Rules, read off ttnn 0.81.1 on a mock Wormhole, L1 to the byte; some are narrower ----

// Of every core's L1, what the firmware and the kernels' arguments take. Tensors begin above it.
constexpr int64_t kL1Base = 105'824;

// Throws Error(Fault::internal) saying op, got and expected unless the library takes the call.
// `room`: the device without the L1 that tensors take.
void check_legal(const Request& request, InputSpecs inputs, const Caps& room);

// Throws unless a tensor can have this spec at all.
void check_spec(const Spec& spec);

// ---- Values ----

struct Operand {
  Spec spec;
  std::span<const float> values;  // empty: absent
};

// The call in f32 over logical, row-major values, one vector per output; each is rounded once, at
// the end, to what the device's packer stores. The request is legal, but for ids of an embedding
// beyond its table: those throw Error(Fault::internal). Bit-equal for every number of threads.
std::vector<std::vector<float>> compute(const Request& request, std::span<const Operand> inputs,
                                        std::span<const Spec> outputs, int threads);

// What the library makes of values on their way to the device. bf16: to nearest even; bfp8: each
// magnitude to nearest even under the exponent of its 16 values, at most 127, f32 denormals as
// zero.
std::vector<float> rounded_for_upload(const Spec& spec, std::span<const float> values, int threads);

}  // namespace tendon::tt
