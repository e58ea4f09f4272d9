// Synthetic weights v1: a complete pi0 or pi0.5 parameter set as a pure function of a seed, so that
// benchmarks and parity tests need no download. Formula: tools/make_goldens/README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/weights.h"
#include "tensor/tensor.h"

namespace tendon {

struct SyntheticOptions {
  uint64_t seed = 2024;
  DType dtype = DType::f32;  // f32 or bf16 in memory; bf16 values are rounded to nearest even
  bool round_bf16 = false;   // f32 in memory, values rounded to bf16
  int64_t vision_depth = 27, vlm_depth = 18, expert_depth = 18;  // scales depend on them
  int threads = 0;  // 0: one per core; never changes a value
};

// w_i = offset + scale · r_i with r_i uniform in [-1, 1), a function of seed, name and i. Bit-equal
// on every machine.
HostTensor synthetic_tensor(const std::string& name, const Shape& shape,
                            const SyntheticOptions& options);

// A source in which every tensor of pi0 (or pi0.5) exists in whatever shape it is asked for.
std::unique_ptr<WeightSource> synthetic_weights(bool pi05, const SyntheticOptions& options);

}  // namespace tendon
