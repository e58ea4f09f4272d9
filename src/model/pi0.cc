#include "model/pi0.h"

#include <cmath>
#include <numbers>

#include "tensor/check.h"

namespace tendon {
namespace {

Heads heads_of(const VisionConfig& c) { return {c.heads, c.heads, c.width / c.heads}; }
Heads heads_of(const GemmaConfig& c) { return {c.heads, c.kv_heads, c.head_dim}; }

// ---- SigLIP: `images` groups of rows that do not see each other ----

// x [images * tokens, width]; the same shape results.
Tensor vision_block(Ops& ops, const VisionBlock& w, const Heads& heads, const Tensor& x,
                    int64_t images) {
  const int32_t visible[] = {static_cast<int32_t>(x.rows() / images)};  // a whole image
  const Tensor n = ops.tap("norm1", ops.layer_norm(x, w.norm1.scale, w.norm1.shift));
  const Qkv qkv = ops.qkv(n, w.qkv, heads);  // 3 x [images * tokens, width]
  const Tensor a = ops.tap("sdpa", ops.attention(qkv.q, qkv.k, qkv.v, heads, {visible, images}));
  const Tensor h = ops.linear("attention", a, w.output, {.residual = x});
  const Tensor m = ops.tap("norm2", ops.layer_norm(h, w.norm2.scale, w.norm2.shift));
  const Tensor up = ops.linear(m, w.up, {.activation = Activation::gelu_tanh});  // [.., mlp]
  return ops.linear("mlp", up, w.down, {.residual = h});
}

// ---- Gemma: one block reads the prefix and, conditioned on time, denoises the actions ----

struct BlockInput {
  Heads heads;
  int64_t first = 0;  // row of the cache, and rotary position, of x's first row
  const Modulation &attention, &mlp;
};

// x [rows, width]; the same shape results. Every row sees the cache up to the last row of x.
Tensor gemma_block(Ops& ops, const GemmaBlock& w, const Tensor& x, LayerKv& kv,
                   const BlockInput& in) {
  const int32_t visible[] = {static_cast<int32_t>(in.first + x.rows())};
  const Tensor n = ops.tap("norm1", ops.rms_norm(x, in.attention.scale, in.attention.shift));
  const Qkv qkv = ops.qkv_tapped(n, w.qkv, in.heads, in.first);  // q [rows, heads * head_dim]
  ops.tap("query", qkv.q);
  ops.write_rows(kv.keys, ops.tap("key", qkv.k), in.first);  // k, v [rows, kv * head_dim]
  ops.write_rows(kv.values, ops.tap("value", qkv.v), in.first);
  const Tensor a = ops.tap("sdpa", ops.attention(qkv.q, kv.keys, kv.values, in.heads, {visible}));
  const Epilogue attended{.residual = x, .gate = in.attention.gate};
  const Tensor h = ops.linear("attention", a, w.output, attended);
  const Tensor m = ops.tap("norm2", ops.rms_norm(h, in.mlp.scale, in.mlp.shift));
  const Tensor up = ops.gated_linear(m, w.gated);  // [rows, mlp]
  if (in.attention.gate) ops.tap("gate1", in.attention.gate), ops.tap("gate2", in.mlp.gate);
  return ops.linear("mlp", up, w.down, {.residual = h, .gate = in.mlp.gate});
}

// Suffix rows x [rows, width] through the expert, on top of the cache; returns them after the final
// norm. Without `step` x is pi0's state token, which comes first and is at no time: its norms are
// the plain ones.
Tensor expert_pass(Ops& ops, const Model& m, KvCache& cache, Tensor x, const StepTables* step) {
  const Ops::Scope scope(ops, Module::expert);
  const Gemma& expert = m.weights.expert;
  const int64_t first = cache.prefix + (step && !m.config.pi05() ? 1 : 0);
  for (size_t l = 0; l < expert.blocks.size(); ++l) {
    const Ops::Scope layer = Ops::Scope::layer(ops, l);
    const GemmaBlock& block = expert.blocks[l];
    const Modulation norm1{block.norm1.scale}, norm2{block.norm2.scale};
    const BlockInput in{heads_of(m.config.expert), first, step ? step->attention[l] : norm1,
                        step ? step->mlp[l] : norm2};
    x = ops.tap("", gemma_block(ops, block, x, cache.layers[l], in));
  }
  return ops.tap("norm", step ? ops.rms_norm(x, step->final.scale, step->final.shift)
                              : ops.rms_norm(x, expert.norm.scale));
}

}  // namespace

// ---- Prefix ----

KvCache make_cache(Ops& ops, const Config& config) {
  const int64_t rows =
      config.cameras * config.vision.tokens() + config.max_token_len + 1 + config.horizon;
  const Shape shape{rows, config.vlm.kv_heads * config.vlm.head_dim};
  const std::vector<float> blank(static_cast<size_t>(shape.count()));
  KvCache cache;
  for (int64_t l = 0; l < config.vlm.depth; ++l)
    cache.layers.push_back({ops.upload(blank, shape), ops.upload(blank, shape)});
  return cache;
}

Tensor embed_images(Ops& ops, const Model& m, const Tensor& patches, int64_t images) {
  const Ops::Scope scope(ops, Module::siglip);
  const Vision& w = m.weights.vision;
  Tensor x = ops.linear("patch", patches, w.patch, {.residual = w.position});
  x = ops.tap("embed", x);  // [images * tokens, 1152]
  for (size_t l = 0; l < w.blocks.size(); ++l) {
    const Ops::Scope layer = Ops::Scope::layer(ops, l);
    x = ops.tap("", vision_block(ops, w.blocks[l], heads_of(m.config.vision), x, images));
  }
  x = ops.tap("norm", ops.layer_norm(x, w.norm.scale, w.norm.shift));
  return ops.tap("projector", ops.linear(x, w.project));  // [images * tokens, 2048], not scaled
}

Tensor embed_language(Ops& ops, const Model& m, std::span<const int32_t> prompt) {
  const Ops::Scope scope(ops, Module::prefix);
  const float scale = static_cast<float>(std::sqrt(static_cast<double>(m.config.vlm.width)));
  return ops.tap("language", ops.embed(m.weights.embedding, prompt, scale));  // [prompt, 2048]
}

Tensor join_prefix(Ops& ops, const Tensor& images, const Tensor& language) {
  const Ops::Scope scope(ops, Module::prefix);
  if (!images) return language;
  const Tensor parts[] = {images, language};
  return ops.concat_rows(parts);  // [images * tokens + prompt, 2048]
}

Tensor embed_prefix(Ops& ops, const Model& m, const Inputs& in) {
  const Tensor language = embed_language(ops, m, in.prompt);
  const Tensor images = in.images > 0 ? embed_images(ops, m, in.patches, in.images) : Tensor();
  return join_prefix(ops, images, language);
}

void fill_kv_cache(Ops& ops, const Model& m, const Tensor& prefix, KvCache& cache) {
  const Ops::Scope scope(ops, Module::vlm);
  const Gemma& vlm = m.weights.vlm;
  Heads heads = heads_of(m.config.vlm);
  ensure(prefix.rows() + 1 + m.config.horizon <= cache.layers[0].keys.rows(), Fault::input,
         "the prefix has {} tokens, the cache has room for {}", prefix.rows(),
         cache.layers[0].keys.rows() - 1 - m.config.horizon);
  cache.prefix = prefix.rows();
  Tensor x = ops.tap("embed", prefix);
  for (size_t l = 0; l < vlm.blocks.size(); ++l) {
    const Ops::Scope layer = Ops::Scope::layer(ops, l);
    const GemmaBlock& block = vlm.blocks[l];
    const Modulation norm1{block.norm1.scale}, norm2{block.norm2.scale};
    x = ops.tap("", gemma_block(ops, block, x, cache.layers[l], {heads, 0, norm1, norm2}));
  }
  x = ops.tap("norm", ops.rms_norm(x, vlm.norm.scale));
  if (!vlm.last_kv) return;  // else nobody reads more of the last layer than its keys and values
  const Ops::Scope layer = Ops::Scope::layer(ops, vlm.blocks.size());
  heads.query = 0;
  const Qkv kv = ops.qkv(x, vlm.last_kv, heads, 0);
  ops.write_rows(cache.layers.back().keys, ops.tap("key", kv.k), 0);
  ops.write_rows(cache.layers.back().values, ops.tap("value", kv.v), 0);
}

void append_state(Ops& ops, const Model& m, const Tensor& state, KvCache& cache) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor token = ops.tap("", ops.linear(state, m.weights.state));  // [1, 1024]
  expert_pass(ops, m, cache, token, nullptr);
}

// ---- Suffix and Euler steps ----

namespace {

// actions [horizon, action_dim] -> tokens [horizon, 1024]; pi0: together with the time of the step.
Tensor embed_suffix(Ops& ops, const Model& m, const StepTables& step, const Tensor& actions) {
  Tensor tokens = ops.tap("actions", ops.linear(actions, m.weights.action_in));
  if (m.config.pi05()) return tokens;
  const Epilogue mixed{.activation = Activation::silu, .bias = step.mix};
  return ops.linear(ops.linear(tokens, m.weights.action_time_mlp_in_actions, mixed),
                    m.weights.action_time_mlp_out);
}

}  // namespace

Tensor velocity(Ops& ops, const Model& m, KvCache& cache, const StepTables& step,
                const Tensor& actions) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor tokens = ops.tap("", embed_suffix(ops, m, step, actions));  // [horizon, 1024]
  const Tensor y = expert_pass(ops, m, cache, tokens, &step);
  return ops.tap("velocity", ops.linear(y, m.weights.action_out));  // [horizon, action_dim]
}

Tensor denoise(Ops& ops, const Model& m, KvCache& cache, const Schedule& schedule,
               const Noise& noise) {
  const Ops::Scope scope(ops, Module::denoise);
  const std::optional<Guidance>& guidance = noise.guidance;
  Tensor x = noise.actions;
  for (size_t k = 0; k < schedule.steps.size(); ++k) {
    const Ops::Scope at = Ops::Scope::step(ops, k);
    const StepTables& step = schedule.steps[k];
    ops.tap("time", step.time_embedding);
    if (step.condition) ops.tap("condition", step.condition);
    Tensor v = velocity(ops, m, cache, step, x);
    if (guidance) {  // err = (leftover - (x - t v)) * weights
      const Tensor clean = ops.add_scaled(x, v, -step.time);
      const Tensor error =
          ops.multiply(ops.add_scaled(guidance->leftover, clean, -1.f), guidance->weights);
      v = ops.add_scaled(v, error, -guidance_strength(step.time, guidance->max_weight));
    }
    x = ops.tap("actions", ops.add_scaled(x, v, schedule.dt));  // [horizon, action_dim]
  }
  return x;
}

// ---- What depends on the denoising time alone: computed once per step count ----

namespace {

// Sines, then cosines, of t · 2π / period_i; period_i runs from min to max geometrically.
template <class Float>
void embed_time(Float t, const Config& config, std::span<float> to) {
  const size_t half = to.size() / 2;
  const Float low = static_cast<Float>(config.min_period);
  const Float ratio = static_cast<Float>(config.max_period) / low;
  for (size_t i = 0; i < half; ++i) {
    const Float fraction =
        half > 1 ? static_cast<Float>(i) / static_cast<Float>(half - 1) : Float{0};
    const Float period = low * std::pow(ratio, fraction);
    const Float angle = t * (Float{2} * std::numbers::pi_v<Float> / period);
    to[i] = static_cast<float>(std::sin(angle));
    to[half + i] = static_cast<float>(std::cos(angle));
  }
}

std::vector<float> times(int64_t steps, TimeSequence sequence) {
  std::vector<float> t;
  float accumulated = 1.f;
  for (int64_t k = 0; k < steps; ++k) {
    const double exact = 1.0 + static_cast<double>(k) * (-1.0 / static_cast<double>(steps));
    t.push_back(sequence == TimeSequence::lerobot ? static_cast<float>(exact) : accumulated);
    accumulated += static_cast<float>(-1.0 / static_cast<double>(steps));
  }
  return t;
}

// Scale, shift and gate of one norm for all steps: condition [steps, width] -> one row per step.
std::vector<Modulation> modulations(Ops& ops, const GemmaNorm& norm, const Tensor& condition,
                                    int64_t steps) {
  if (!norm.ada_scale) return std::vector<Modulation>(static_cast<size_t>(steps), {norm.scale});
  const Tensor scale = ops.linear(condition, norm.ada_scale);
  const Tensor shift = ops.linear(condition, norm.ada_shift);
  const Tensor gate = ops.linear(condition, norm.ada_gate);
  std::vector<Modulation> rows;
  for (int64_t k = 0; k < steps; ++k)
    rows.push_back({ops.slice_rows(scale, k, k + 1), ops.slice_rows(shift, k, k + 1),
                    ops.slice_rows(gate, k, k + 1)});
  return rows;
}

}  // namespace

std::vector<StepTables> step_tables(Ops& ops, const Model& m, std::span<const float> t,
                                    TimeSequence sequence) {
  const Ops::Scope scope(ops, Module::common);
  const int64_t count = std::ssize(t), width = m.config.expert.width;
  std::vector<float> embeddings(static_cast<size_t>(count * width));
  for (size_t k = 0; k < t.size(); ++k) {
    const auto row =
        std::span(embeddings).subspan(k * static_cast<size_t>(width), static_cast<size_t>(width));
    if (sequence == TimeSequence::lerobot) embed_time<double>(t[k], m.config, row);
    if (sequence == TimeSequence::openpi) embed_time<float>(t[k], m.config, row);
  }
  const Tensor embedding = ops.upload(embeddings, {count, width});
  Tensor mix, condition;
  if (m.config.pi05()) {
    const Epilogue silu{.activation = Activation::silu};
    condition =
        ops.linear(ops.linear(embedding, m.weights.time_in, silu), m.weights.time_out, silu);
  } else {
    mix = ops.linear(embedding, m.weights.action_time_mlp_in_time);
  }

  std::vector<StepTables> tables;
  for (int64_t k = 0; k < count; ++k) {
    StepTables step{.time = t[static_cast<size_t>(k)],
                    .time_embedding = ops.slice_rows(embedding, k, k + 1)};
    if (mix) step.mix = ops.slice_rows(mix, k, k + 1);
    if (condition) step.condition = ops.slice_rows(condition, k, k + 1);
    tables.push_back(std::move(step));
  }
  const auto spread = [&](const GemmaNorm& norm, const auto& place) {
    const std::vector<Modulation> rows = modulations(ops, norm, condition, count);
    for (size_t k = 0; k < rows.size(); ++k) place(tables[k], rows[k]);
  };
  for (const GemmaBlock& block : m.weights.expert.blocks) {
    spread(block.norm1, [](StepTables& s, const Modulation& row) { s.attention.push_back(row); });
    spread(block.norm2, [](StepTables& s, const Modulation& row) { s.mlp.push_back(row); });
  }
  spread(m.weights.expert.norm, [](StepTables& s, const Modulation& row) { s.final = row; });
  return tables;
}

Schedule make_schedule(Ops& ops, const Model& m, int64_t steps, TimeSequence sequence) {
  ensure(steps >= 1 && steps <= 1000, Fault::input, "{} denoising steps; 1 to 1000 make sense",
         steps);
  return {step_tables(ops, m, times(steps, sequence), sequence),
          static_cast<float>(-1.0 / static_cast<double>(steps))};
}

}  // namespace tendon
