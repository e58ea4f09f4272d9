#include "model/pi0.h"

#include <cmath>

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
  const Tensor n = ops.tap("norm1", ops.layer_norm(x, w.norm1.scale, w.norm1.shift));  // as x
  const Qkv qkv = ops.qkv(n, w.qkv, heads);  // 3 x [images * tokens, width]
  const Tensor a = ops.tap("sdpa", ops.attention(qkv.q, qkv.k, qkv.v, heads, {visible, images}));
  const Tensor h = ops.linear("attention", a, w.output, {.residual = x});              // as x
  const Tensor m = ops.tap("norm2", ops.layer_norm(h, w.norm2.scale, w.norm2.shift));  // as x
  const Tensor up = ops.linear(m, w.up, {.activation = Activation::gelu_tanh});        // [.., mlp]
  return ops.linear("mlp", up, w.down, {.residual = h});
}

// ---- Gemma: one block reads the prefix and, conditioned on time, denoises the actions ----

Tensor rows_of(Ops& ops, const Tensor& x, int64_t first, int64_t rows) {
  return rows == x.rows() ? x : ops.slice_rows(x, first, first + rows);
}

Tensor stacked(Ops& ops, std::span<const Tensor> parts) {
  return parts.size() == 1 ? parts[0] : ops.concat_rows(parts);
}

struct BlockInput {
  Heads heads;
  size_t layer = 0;
  const Sequences& caches;
  // Rows of the cache between the prefix and the rows of a sequence; none: they are the prefix.
  std::optional<int64_t> behind;
  const Modulation &attention, &mlp;

  // Where the rows of sequence i stand in its cache (their rotary positions), and how many of the
  // call's `rows` they are.
  int64_t first(size_t i) const { return behind ? caches[i].prefix + *behind : 0; }
  int64_t count(size_t i, int64_t rows) const {
    return behind ? rows / static_cast<int64_t>(caches.size()) : caches[i].prefix;
  }
};

// One sequence: n [rows, width] -> [rows, heads * head_dim]. Every row sees its cache up to the
// last of them.
Tensor attend(Ops& ops, const Weight& w, const Tensor& n, const BlockInput& in, size_t i) {
  LayerKv& kv = in.caches[i].layers[in.layer];
  const int64_t first = in.first(i);
  const int32_t visible[] = {static_cast<int32_t>(first + n.rows())};
  const Qkv qkv = ops.qkv_tapped(n, w, in.heads, first);  // q [rows, heads * head_dim]
  ops.tap("query", qkv.q);
  ops.write_rows(kv.keys, ops.tap("key", qkv.k), first);  // k, v [rows, kv * head_dim]
  ops.write_rows(kv.values, ops.tap("value", qkv.v), first);
  return ops.tap("sdpa", ops.attention(qkv.q, kv.keys, kv.values, in.heads, {visible}));
}

Tensor gemma_attention(Ops& ops, const Weight& w, const Tensor& n, const BlockInput& in) {
  if (in.caches.size() == 1) return attend(ops, w, n, in, 0);
  std::vector<Tensor> parts;
  for (int64_t i = 0, row = 0; i < static_cast<int64_t>(in.caches.size()); ++i) {
    const auto place = static_cast<size_t>(i);
    const int64_t rows = in.count(place, n.rows());
    parts.push_back(attend(ops, w, rows_of(ops, n, row, rows), in, place));
    row += rows;
  }
  return ops.concat_rows(parts);
}

// x [rows, width]; the same shape results.
Tensor gemma_block(Ops& ops, const GemmaBlock& w, const Tensor& x, const BlockInput& in) {
  const Tensor n = ops.tap("norm1", ops.rms_norm(x, in.attention.scale, in.attention.shift));
  const Tensor a = gemma_attention(ops, w.qkv, n, in);  // [rows, heads * head_dim]
  const Epilogue attended{.residual = x, .gate = in.attention.gate};
  const Tensor h = ops.linear("attention", a, w.output, attended);  // as x
  const Tensor m = ops.tap("norm2", ops.rms_norm(h, in.mlp.scale, in.mlp.shift));
  const Tensor up = ops.gated_linear(m, w.gated);  // [rows, mlp]
  if (in.attention.gate) ops.tap("gate1", in.attention.gate), ops.tap("gate2", in.mlp.gate);
  return ops.linear("mlp", up, w.down, {.residual = h, .gate = in.mlp.gate});
}

// Suffix rows x [rows, width], equally many of each cache, through the expert, on top of the
// caches; returns them after the final norm. Without `step` they are pi0's state tokens, which come
// first and are at no time: their norms are the plain ones.
Tensor expert_pass(Ops& ops, const Model& m, const Sequences& caches, Tensor x,
                   const StepTables* step) {
  const Ops::Scope scope(ops, Module::expert);
  const Gemma& expert = m.weights.expert;
  const int64_t behind = step && !m.config.pi05() ? 1 : 0;  // the state token
  for (size_t l = 0; l < expert.blocks.size(); ++l) {
    const Ops::Scope layer = Ops::Scope::layer(ops, l);
    const GemmaBlock& block = expert.blocks[l];
    const Modulation norm1{block.norm1.scale}, norm2{block.norm2.scale};
    const BlockInput in{
        heads_of(m.config.expert),  l, caches, behind, step ? step->attention[l] : norm1,
        step ? step->mlp[l] : norm2};
    x = ops.tap("", gemma_block(ops, block, x, in));
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
  x = ops.tap("norm", ops.layer_norm(x, w.norm.scale, w.norm.shift));  // as before
  return ops.tap("projector", ops.linear(x, w.project));  // [images * tokens, 2048], not scaled
}

Tensor embed_language(Ops& ops, const Model& m, std::span<const int32_t> prompt) {
  const Ops::Scope scope(ops, Module::prefix);
  const float scale = static_cast<float>(std::sqrt(static_cast<double>(m.config.vlm.width)));
  return ops.tap("language", ops.embed(m.weights.embedding, prompt, scale));  // [prompt, 2048]
}

Tensor join_prefix(Ops& ops, const Tensor& images, const Tensor& language,
                   std::span<const Inputs> sequences) {
  const Ops::Scope scope(ops, Module::prefix);
  if (sequences.size() == 1) {
    const Tensor one[] = {images, language};
    return images ? ops.concat_rows(one) : language;
  }
  std::vector<Tensor> parts;
  int64_t image_row = 0, prompt_row = 0;
  for (const Inputs& in : sequences) {
    if (in.images > 0) parts.push_back(rows_of(ops, images, image_row, in.image_tokens()));
    parts.push_back(rows_of(ops, language, prompt_row, std::ssize(in.prompt)));
    image_row += in.image_tokens();
    prompt_row += std::ssize(in.prompt);
  }
  return stacked(ops, parts);
}

void fill_kv_cache(Ops& ops, const Model& m, const Tensor& prefix, const Sequences& caches) {
  const Ops::Scope scope(ops, Module::vlm);
  const Gemma& vlm = m.weights.vlm;
  Heads heads = heads_of(m.config.vlm);
  for (size_t i = 0; i < caches.size(); ++i) {
    const int64_t room = caches[i].layers[0].keys.rows() - 1 - m.config.horizon;
    ensure(caches[i].prefix <= room, Fault::input,
           "the prefix has {} tokens, the cache has room for {}", caches[i].prefix, room);
  }
  Tensor x = ops.tap("embed", prefix);  // [prefix rows, 2048]
  for (size_t l = 0; l < vlm.blocks.size(); ++l) {
    const Ops::Scope layer = Ops::Scope::layer(ops, l);
    const GemmaBlock& block = vlm.blocks[l];
    const Modulation norm1{block.norm1.scale}, norm2{block.norm2.scale};
    x = ops.tap("", gemma_block(ops, block, x, {heads, l, caches, {}, norm1, norm2}));
  }
  x = ops.tap("norm", ops.rms_norm(x, vlm.norm.scale));  // as before
  if (!vlm.last_kv) return;  // else nobody reads more of the last layer than its keys and values
  const Ops::Scope layer = Ops::Scope::layer(ops, vlm.blocks.size());
  heads.query = 0;
  for (size_t i = 0, row = 0; i < caches.size(); row += static_cast<size_t>(caches[i++].prefix)) {
    const Tensor own = rows_of(ops, x, static_cast<int64_t>(row), caches[i].prefix);
    const Qkv kv = ops.qkv(own, vlm.last_kv, heads, 0);
    ops.write_rows(caches[i].layers.back().keys, ops.tap("key", kv.k), 0);
    ops.write_rows(caches[i].layers.back().values, ops.tap("value", kv.v), 0);
  }
}

void append_state(Ops& ops, const Model& m, const Tensor& state, const Sequences& caches) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor token = ops.tap("", ops.linear(state, m.weights.state));  // [caches, 1024]
  expert_pass(ops, m, caches, token, nullptr);
}

namespace {

// Several sequences as one: their patches, prompts and states below each other.
Inputs stacked(Ops& ops, std::span<const Inputs> all) {
  Inputs sum;
  std::vector<Tensor> patches, states;
  for (const Inputs& in : all) {
    if (in.images > 0) patches.push_back(in.patches);
    if (in.state) states.push_back(in.state);
    sum.prompt.insert(sum.prompt.end(), in.prompt.begin(), in.prompt.end());
    sum.images += in.images;
  }
  if (!patches.empty()) sum.patches = stacked(ops, patches);
  if (!states.empty()) sum.state = stacked(ops, states);
  return sum;
}

}  // namespace

void read_prefix(Ops& ops, const Model& m, std::span<const Inputs> all, const Sequences& caches,
                 const RunStage& run) {
  for (size_t i = 0; i < all.size(); ++i)
    caches[i].prefix = all[i].image_tokens() + std::ssize(all[i].prompt);
  const Inputs several = all.size() > 1 ? stacked(ops, all) : Inputs{};
  const Inputs& in = all.size() > 1 ? several : all[0];
  const Tensor language = embed_language(ops, m, in.prompt);  // [prompts, 2048]
  const auto see = [&](auto inputs) {
    return std::vector<Tensor>{embed_images(ops, m, inputs[0], in.images)};
  };
  Tensor seen;  // [images * 256, 2048]
  if (in.images > 0) seen = run("vision", {&in.patches, 1}, std::ref(see))[0];
  const auto fill = [&](auto inputs) {
    fill_kv_cache(ops, m, join_prefix(ops, inputs[0], inputs[1], all), caches);
    if (inputs[2]) append_state(ops, m, inputs[2], caches);
    std::vector<Tensor> tensors;
    tensors.reserve(2 * caches.size() * caches[0].layers.size());
    for (size_t i = 0; i < caches.size(); ++i)
      for (const LayerKv& kv : caches[i].layers) {
        tensors.push_back(kv.keys);
        tensors.push_back(kv.values);
      }
    return tensors;
  };
  const Tensor given[] = {seen, language, in.state};
  const std::vector<Tensor> filled = run("prefill", given, std::ref(fill));
  auto tensor = filled.begin();  // those of the run that was recorded, where it was replayed
  for (size_t i = 0; i < caches.size(); ++i)
    for (LayerKv& kv : caches[i].layers) kv.keys = *tensor++, kv.values = *tensor++;
}

// ---- Suffix and Euler steps ----

namespace {

// actions [rows, action_dim] -> tokens [rows, 1024]; pi0: together with the time of the step.
Tensor embed_suffix(Ops& ops, const Model& m, const StepTables& step, const Tensor& actions) {
  Tensor tokens = ops.tap("actions", ops.linear(actions, m.weights.action_in));  // [rows, 1024]
  if (m.config.pi05()) return tokens;
  const Epilogue mixed{.activation = Activation::silu, .bias = step.mix};
  return ops.linear(ops.linear(tokens, m.weights.action_time_mlp_in_actions, mixed),
                    m.weights.action_time_mlp_out);
}

}  // namespace

Tensor velocity(Ops& ops, const Model& m, const Sequences& caches, const StepTables& step,
                const Tensor& actions) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor tokens = ops.tap("", embed_suffix(ops, m, step, actions));  // [rows, 1024]
  const Tensor y = expert_pass(ops, m, caches, tokens, &step);             // as tokens
  return ops.tap("velocity", ops.linear(y, m.weights.action_out));         // [rows, action_dim]
}

Tensor denoise(Ops& ops, const Model& m, const Sequences& caches, const Schedule& schedule,
               const Noise& noise) {
  const Ops::Scope scope(ops, Module::denoise);
  const std::optional<Guidance>& guidance = noise.guidance;
  Tensor x = ops.tap("noise", noise.actions);  // [rows, action_dim]
  for (size_t k = 0; k < schedule.steps.size(); ++k) {
    const Ops::Scope at = Ops::Scope::step(ops, k);
    const StepTables& step = schedule.steps[k];
    ops.tap("time", step.time_embedding);
    if (step.condition) ops.tap("condition", step.condition);
    Tensor v = velocity(ops, m, caches, step, x);  // as x
    if (guidance) {                                // err = (leftover - (x - t v)) * weights
      const Tensor clean = ops.add_scaled(x, v, -step.time);  // as x
      const Tensor error =
          ops.multiply(ops.add_scaled(guidance->leftover, clean, -1.f), guidance->weights);
      v = ops.add_scaled(v, error, -guidance_strength(step.time, guidance->max_weight));
    }
    x = ops.tap("actions", ops.add_scaled(x, v, schedule.dt));  // [rows, action_dim]
  }
  return x;
}

}  // namespace tendon
