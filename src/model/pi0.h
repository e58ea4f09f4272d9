// The pi0 and pi0.5 networks, from image patches to actions, for every backend. Shapes are [rows,
// columns]; a batch is stacked by rows, and its sequences may differ in length. Source of the
// formulas: the published models (openpi, lerobot); DESIGN.md lists the exact work-skipping used
// here. Goldens and validation see the tensors that pi0.cc taps by name (Ops::set_tap).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights.h"
#include "ops/ops.h"
#include "tendon/types.h"

namespace tendon {

struct Model {
  Config config;
  Weights weights;
};

// What one call computes from. Absent cameras and prompt padding are left out, not masked.
struct Inputs {
  Tensor patches;               // [images * tokens, 3 * patch * patch], pixels in [-1, 1]
  int64_t images = 0;           // how many cameras are stacked in `patches`
  std::vector<int32_t> prompt;  // token ids, beginning with BOS
  Tensor state;                 // pi0: [1, state_dim], normalised and padded with zeros

  int64_t image_tokens() const { return images > 0 ? patches.rows() : 0; }
};

struct LayerKv {
  Tensor keys, values;  // [capacity, kv_heads * head_dim], rotary embedding applied to the keys
};

// Keys and values of every layer; rows [0, prefix) are the prefix, then come state and actions.
struct KvCache {
  std::vector<LayerKv> layers;
  int64_t prefix = 0;
};

// The sequences whose rows are stacked in one call, in order. One cache may stand for several
// chunks in velocity() and denoise(): they are drawn from one prefix.
class Sequences {
 public:
  Sequences(KvCache& one) : one_(&one) {}                  // NOLINT: a cache is a batch of one
  Sequences(std::span<KvCache* const> all) : all_(all) {}  // NOLINT
  size_t size() const { return all_.empty() ? 1 : all_.size(); }
  KvCache& operator[](size_t i) const { return all_.empty() ? *one_ : *all_[i]; }

 private:
  KvCache* one_ = nullptr;
  std::span<KvCache* const> all_;
};

// Scale, shift and gate of one conditioned norm at one time; only scale where there is no
// condition.
struct Modulation {
  Tensor scale, shift, gate;  // [1, width]
};

// Everything that depends on the denoising time alone, for one sequence of Euler steps.
struct StepTables {
  float time = 1.f;                   // 1: noise, 0: actions
  Tensor time_embedding;              // [1, width]
  Tensor mix;                         // pi0: W_time e(t) + b, [1, width]
  Tensor condition;                   // pi0.5: [1, width]
  std::vector<Modulation> attention;  // per expert layer
  std::vector<Modulation> mlp;
  Modulation final;
};

struct Schedule {
  std::vector<StepTables> steps;
  float dt = -0.1f;  // -1 / steps
};

// Guided real-time chunking (lerobot's RTCProcessor): pulls the first rows of the new chunk towards
// what is left of the previous one.
struct Guidance {
  Tensor leftover;  // [caches * horizon, action_dim], normalised, padded with zeros
  Tensor weights;   // the same shape, every column the same
  float max_weight = 10.f;
};

// What denoising begins with.
struct Noise {
  Tensor actions;  // [caches * horizon, action_dim]
  std::optional<Guidance> guidance = {};
};

// Weight of each row of the chunk, [horizon], in [0, 1]. `delay`: actions that will have been
// executed when the chunk arrives; `execution_horizon`: rows that are guided at all;
// `leftover_rows` caps it. Throws Error(Fault::input) for a negative delay.
std::vector<float> guidance_weights(GuidanceSchedule schedule, int64_t delay,
                                    int64_t execution_horizon, int64_t leftover_rows,
                                    int64_t horizon);

// Weights for the guidance at t: min(((1-τ)/τ) ((1-τ)² + τ²) / (1-τ)², max), τ = 1 - t.
float guidance_strength(float time, float max_weight);

// A cache for up to max_token_len prompt tokens and config.cameras images.
KvCache make_cache(Ops& ops, const Config& config);

// [images * tokens, 3 * patch * patch] -> [images * tokens, vlm width]
Tensor embed_images(Ops& ops, const Model& m, const Tensor& patches, int64_t images);

// [prompt, vlm width], times the square root of the width
Tensor embed_language(Ops& ops, const Model& m, std::span<const int32_t> prompt);

// Image tokens, if any, above language tokens, sequence by sequence: [images + prompt, vlm width]
Tensor join_prefix(Ops& ops, const Tensor& images, const Tensor& language,
                   std::span<const Inputs> sequences);

// Reads the prefix, of which `prefix` rows belong to each cache, and, for pi0, the state tokens,
// one each (which see their prefix and themselves, at no time).
void fill_kv_cache(Ops& ops, const Model& m, const Tensor& prefix, const Sequences& caches);
void append_state(Ops& ops, const Model& m, const Tensor& state, const Sequences& caches);

// Runs `body` on `inputs`, as Ops::graph does; `stage`: "vision", "prefill".
using RunStage = std::function<std::vector<Tensor>(
    const char* stage, std::span<const Tensor> inputs, const Kernels::Body& body)>;

// All of the above, for one or several sequences.
void read_prefix(
    Ops& ops, const Model& m, std::span<const Inputs> sequences, const Sequences& caches,
    const RunStage& run = [](auto*, auto inputs, auto& body) { return body(inputs); });

// What depends on each of these times, in [0, 1], alone. `sequence` decides the arithmetic.
std::vector<StepTables> step_tables(Ops& ops, const Model& m, std::span<const float> times,
                                    TimeSequence sequence);
Schedule make_schedule(Ops& ops, const Model& m, int64_t steps, TimeSequence sequence);

// One velocity evaluation: actions [caches * horizon, action_dim] -> velocity, the same shape.
Tensor velocity(Ops& ops, const Model& m, const Sequences& caches, const StepTables& step,
                const Tensor& actions);

// Euler steps from noise (t = 1) to actions (t = 0).
Tensor denoise(Ops& ops, const Model& m, const Sequences& caches, const Schedule& schedule,
               const Noise& noise);

}  // namespace tendon
