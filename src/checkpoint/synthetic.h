// Synthetic weights v1: a complete pi0 or pi0.5 parameter set as a pure function of a seed, so that
// benchmarks and parity tests need no download. tools/make_goldens/synthetic.py gives the same
// bits.
//
//   G   = 0x9E3779B97F4A7C15
//   key = FNV-1a-64(name) xor seed * G            name: checkpoint key without a leading "model."
//   z   = splitmix64 finaliser of key + (i + 1) * G        i: row-major index of the element
//   r   = float(z >> 40) * 2^-23 - 1                       in [-1, 1), exact
//   w   = offset + scale * r                               float: product, then sum, both rounded
//
// offset and scale are a table over the last two parts of the name (rule() in synthetic.cc), fan-in
// and tower depth, computed in double and rounded once; with them tiny and full models alike give
// actions with a standard deviation of 1.2 to 1.5. The token table has the name of embed_tokens
// wherever it is stored.
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
