// The parameters of a pi0 or pi0.5 model: the list of tensors in a checkpoint, and the form in
// which the network uses them. Every name and shape stands once, in weights.cc.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/weights.h"
#include "model/config.h"
#include "ops/ops.h"

namespace tendon {

enum class Part { vision, projector, embedding, vlm, expert, heads };
std::string_view name(Part part);

// A tensor of a checkpoint, under the name of openpi's PyTorch conversion.
struct Parameter {
  // inference: read by every model. none: in every file, but of the last prefix layer nobody needs
  // more than keys and values. optional: needed as little, and files without it exist.
  enum class Use { inference, none, optional };
  std::string name;
  Shape shape;
  Part part;
  Use use;
};

// All of them: vision, projector, embedding, VLM, expert, heads. 777 - 1 tensors for pi0 at full
// size (without the expert's unused lm_head).
std::vector<Parameter> parameters(const Config& config);

struct LayerNorm {
  Tensor scale, shift;  // [1, width]
};

struct VisionBlock {
  LayerNorm norm1, norm2;
  Weight qkv, output;  // [3 * width, width], [width, width]
  Weight up, down;     // [mlp, width], [width, mlp]
};

struct Vision {
  Weight patch;     // [width, 3 * patch * patch]
  Tensor position;  // [tokens, width]
  std::vector<VisionBlock> blocks;
  LayerNorm norm;
  Weight project;  // [vlm width, width]
};

// RMSNorm: either a constant scale (1 + w) or, in the pi0.5 expert, three products of the time
// condition: scale (with the 1 folded into its bias), shift and gate, [width, width] each.
struct GemmaNorm {
  Tensor scale;  // [1, width]
  Weight ada_scale, ada_shift, ada_gate;
};

struct GemmaBlock {
  GemmaNorm norm1, norm2;
  Weight qkv;          // [(heads + 2 * kv_heads) * head_dim, width]
  Weight output;       // [width, heads * head_dim]
  Weight gated, down;  // gate over up: [2 * mlp, width]; [width, mlp]
};

struct Gemma {
  std::vector<GemmaBlock> blocks;
  Weight last_kv;  // prefix only: k over v of the last layer, all that anybody reads of it
  GemmaNorm norm;
};

struct Weights {
  Vision vision;
  Weight embedding;  // [vocab, vlm width]
  Gemma vlm, expert;
  Weight action_in, action_out;  // [width, action_dim], [action_dim, width]
  Weight state;                  // pi0: [width, state_dim]
  Weight action_time_mlp_in_actions, action_time_mlp_in_time,
      action_time_mlp_out;   // pi0: action_time_mlp_in in halves, and _out
  Weight time_in, time_out;  // pi0.5: [width, width]
};

struct LoadOptions {
  // Also keep what the policy never computes (the last prefix layer beyond its keys and values, the
  // final prefix norm), so that every stage can be compared.
  bool whole_prefix = false;
  // Told of every large weight, and of pi0.5's norms, once the backend has it.
  std::function<void(const WeightParts&, const Weight&)> prepared;
};

// Loads every tensor that the configuration calls for. Throws Error(Fault::checkpoint) naming the
// tensor that is missing or has another shape.
Weights load_weights(Ops& ops, WeightSource& source, const Config& config,
                     const LoadOptions& options = {});

// pi0 or pi0.5 by the tensors that only one of them has, and every size that the tensors' shapes
// tell; where they contradict each other, what most of them say. What they cannot tell keeps a
// documented default: vision heads of 72 columns (16 at full size), one key/value head, three
// cameras, horizon, step count, token limit and periods of the full-size model. `heads_known`: the
// caller overrides heads afterwards, so that a vision width without heads of 72 is no error. Throws
// Error(Fault::checkpoint) where the source has the tensors of neither kind, or lacks a whole
// tower.
Config config_from_weights(const WeightSource& source, bool heads_known = false,
                           const OnProblem& on_problem = refuse);

// Checks that every parameter is there in its shape, also those that inference never computes, and
// returns the names of tensors that belong to no parameter.
std::vector<std::string> check_parameters(const WeightSource& source, const Config& config,
                                          const OnProblem& on_problem = refuse);

// Whether a tensor that is no parameter looks trained: it stands inside a module that has
// parameters ("q_proj.oft_r" beside "q_proj.weight") or in a layer, or its name says so. Whatever
// it is, the model was trained to compute something else.
bool alters_a_module(const std::string& unused, const Config& config);

}  // namespace tendon
