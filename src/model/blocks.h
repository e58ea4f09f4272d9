// The parts of the towers: what pi0.cc stacks, and what validation compares one by one.
#pragma once

#include <span>

#include "model/pi0.h"

namespace tendon {

Heads heads_of(const VisionConfig& c);
Heads heads_of(const GemmaConfig& c);

// ---- SigLIP: `images` groups of rows that do not see each other ----

struct VisionInput {
  Heads heads;
  std::span<const int32_t> visible;  // one entry: the tokens of an image
  int64_t images = 1;
};

// residual + output(attention(norm1(x))); without a residual, what is added to it.
Tensor vision_attention(Ops& ops, const VisionBlock& w, const Tensor& x, const VisionInput& in,
                        const Tensor& residual);
// residual + down(gelu(up(norm2(h))))
Tensor vision_mlp(Ops& ops, const VisionBlock& w, const Tensor& h, const Tensor& residual);
Tensor vision_block(Ops& ops, const VisionBlock& w, const Tensor& x, const VisionInput& in);

// ---- Gemma: one block reads the prefix and, conditioned on time, denoises the actions ----

struct BlockInput {
  int64_t first;                     // row of the cache, and rotary position, of x's first row
  std::span<const int32_t> visible;  // cache rows that the rows of x see
  const Modulation& attention;
  const Modulation& mlp;
};

// Writes keys and values of x into the cache; residual + gate * output(attention(norm1(x))).
Tensor gemma_attention(Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x,
                       LayerKv& kv, const BlockInput& in, const Epilogue& after);
// residual + gate * down(gelu(gate(norm2(h))) * up(norm2(h)))
Tensor gemma_mlp(Ops& ops, const GemmaBlock& w, const Tensor& h, const BlockInput& in,
                 const Epilogue& after);
Tensor gemma_block(Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x, LayerKv& kv,
                   const BlockInput& in);

// ---- Suffix ----

// pi0: action tokens and the time of the step through two products.
Tensor fuse_action_time(Ops& ops, const Model& m, const StepTables& step, const Tensor& tokens);
// actions [horizon, action_dim] -> tokens [horizon, width]
Tensor embed_suffix(Ops& ops, const Model& m, const StepTables& step, const Tensor& actions);

// What the fused ops of a block leave out of sight, computed again for the probe.
void probe_vision_block(Ops& ops, const VisionBlock& w, const Tensor& x, const VisionInput& in,
                        const Probe& probe);
void probe_gemma_block(Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x,
                       LayerKv& kv, const BlockInput& in, const std::string& stage,
                       const Probe& probe);

}  // namespace tendon
