#include "model/pi0.h"

#include <cmath>

#include "model/blocks.h"
#include "tensor/check.h"

namespace tendon {
namespace {

// Suffix rows through the expert, on top of the cache; returns them after the final norm. Without
// `step` the norms are the plain ones: the state token is at no time.
Tensor expert_pass(Ops& ops, const Model& m, KvCache& cache, Tensor x, int64_t first,
                   const StepTables* step, const Probe& probe) {
  const Ops::Scope scope(ops, Module::gemma);
  const Gemma& expert = m.weights.expert;
  const Heads heads = heads_of(m.config.expert);
  const int32_t visible[] = {static_cast<int32_t>(first + x.rows())};
  for (size_t l = 0; l < expert.blocks.size(); ++l) {
    const Modulation norm1{expert.blocks[l].norm1.scale}, norm2{expert.blocks[l].norm2.scale};
    const BlockInput in{first, visible, step ? step->attention[l] : norm1,
                        step ? step->mlp[l] : norm2};
    const Tensor before = x;
    x = gemma_block(ops, expert.blocks[l], heads, x, cache.layers[l], in);
    if (!probe) continue;
    if (l == 0)
      probe_gemma_block(ops, expert.blocks[0], heads, before, cache.layers[0], in, "expert.layer.0",
                        probe);
    probe(fmt::format("expert.layer.{}", l), x);
  }
  x = step ? ops.rms_norm(x, step->final.scale, step->final.shift)
           : ops.rms_norm(x, expert.norm.scale);
  if (probe) probe("expert.norm", x);
  return x;
}

}  // namespace

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

Tensor embed_images(Ops& ops, const Model& m, const Tensor& patches, int64_t images,
                    const Probe& probe) {
  const Ops::Scope scope(ops, Module::siglip);
  const Vision& w = m.weights.vision;
  const int32_t visible[] = {static_cast<int32_t>(m.config.vision.tokens())};
  const VisionInput in{heads_of(m.config.vision), visible, images};
  Tensor x = ops.linear(patches, w.patch, {.residual = w.position});  // [images * tokens, 1152]
  if (probe) probe("image.patch", ops.linear(patches, w.patch));
  if (probe) probe("image.embed", x);
  for (size_t l = 0; l < w.blocks.size(); ++l) {
    if (probe && l == 0) probe_vision_block(ops, w.blocks[0], x, in, probe);
    x = vision_block(ops, w.blocks[l], x, in);
    if (probe) probe(fmt::format("image.layer.{}", l), x);
  }
  x = ops.layer_norm(x, w.norm.scale, w.norm.shift);
  if (probe) probe("image.post_norm", x);
  x = ops.linear(x, w.project);  // [images * tokens, 2048], not scaled
  if (probe) probe("image.projector", x);
  return x;
}

Tensor embed_language(Ops& ops, const Model& m, std::span<const int32_t> prompt,
                      const Probe& probe) {
  const Ops::Scope scope(ops, Module::prefix);
  const float scale = static_cast<float>(std::sqrt(static_cast<double>(m.config.vlm.width)));
  Tensor tokens = ops.embed(m.weights.embedding, prompt, scale);  // [prompt, 2048]
  if (probe) probe("language.embed", tokens);
  return tokens;
}

Tensor join_prefix(Ops& ops, const Tensor& images, const Tensor& language) {
  const Ops::Scope scope(ops, Module::prefix);
  if (!images) return language;
  const Tensor parts[] = {images, language};
  return ops.concat_rows(parts);
}

Tensor embed_prefix(Ops& ops, const Model& m, const Inputs& in, const Probe& probe) {
  const Tensor language = embed_language(ops, m, in.prompt, probe);
  const Tensor images =
      in.images > 0 ? embed_images(ops, m, in.patches, in.images, probe) : Tensor();
  return join_prefix(ops, images, language);
}

void fill_kv_cache(Ops& ops, const Model& m, const Tensor& prefix, KvCache& cache,
                   const Probe& probe) {
  const Ops::Scope scope(ops, Module::paligemma);
  const Gemma& vlm = m.weights.vlm;
  Heads heads = heads_of(m.config.vlm);
  ensure(prefix.rows() + 1 + m.config.horizon <= cache.layers[0].keys.rows(), Fault::input,
         "the prefix has {} tokens, the cache has room for {}", prefix.rows(),
         cache.layers[0].keys.rows() - 1 - m.config.horizon);
  cache.prefix = prefix.rows();
  const int32_t visible[] = {static_cast<int32_t>(prefix.rows())};
  if (probe) probe("prefix.embed", prefix);
  Tensor x = prefix;
  for (size_t l = 0; l < vlm.blocks.size(); ++l) {
    const Modulation norm1{vlm.blocks[l].norm1.scale}, norm2{vlm.blocks[l].norm2.scale};
    const BlockInput in{0, visible, norm1, norm2};
    const Tensor before = x;
    x = gemma_block(ops, vlm.blocks[l], heads, x, cache.layers[l], in);
    if (!probe) continue;
    if (l == 0)
      probe_gemma_block(ops, vlm.blocks[0], heads, before, cache.layers[0], in, "vlm.layer.0",
                        probe);
    probe(fmt::format("vlm.layer.{}", l), x);
  }
  x = ops.rms_norm(x, vlm.norm.scale);
  if (vlm.last_kv) {  // nobody reads more of the last layer than its keys and values
    heads.query = 0;
    const Qkv kv = ops.qkv(x, vlm.last_kv, heads, 0);
    ops.write_rows(cache.layers.back().keys, kv.k, 0);
    ops.write_rows(cache.layers.back().values, kv.v, 0);
  } else if (probe) {
    probe("vlm.norm", x);
  }
  if (!probe) return;
  for (size_t l = 0; l < cache.layers.size(); ++l) {
    probe(fmt::format("prefix.key.{}", l), ops.slice_rows(cache.layers[l].keys, 0, cache.prefix));
    probe(fmt::format("prefix.value.{}", l),
          ops.slice_rows(cache.layers[l].values, 0, cache.prefix));
  }
}

void append_state(Ops& ops, const Model& m, const Tensor& state, KvCache& cache,
                  const Probe& probe) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor token = ops.linear(state, m.weights.state);  // [1, 1024]
  if (probe) probe("suffix", token);
  expert_pass(ops, m, cache, token, cache.prefix, nullptr, probe);
}

Tensor embed_suffix(Ops& ops, const Model& m, const StepTables& step, const Tensor& actions) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor tokens = ops.linear(actions, m.weights.action_in);
  return m.config.pi05() ? tokens : fuse_action_time(ops, m, step, tokens);
}

Tensor fuse_action_time(Ops& ops, const Model& m, const StepTables& step, const Tensor& tokens) {
  const Epilogue mixed{.activation = Activation::silu, .bias = step.mix};
  return ops.linear(ops.linear(tokens, m.weights.mix_action, mixed), m.weights.mix_out);
}

Tensor velocity(Ops& ops, const Model& m, KvCache& cache, const StepTables& step,
                const Tensor& actions, const Probe& probe) {
  const Ops::Scope scope(ops, Module::suffix);
  const Tensor tokens = embed_suffix(ops, m, step, actions);  // [horizon, 1024]
  if (probe) probe("suffix", tokens);
  const int64_t first = cache.prefix + (m.config.pi05() ? 0 : 1);  // pi0: after the state token
  const Tensor y = expert_pass(ops, m, cache, tokens, first, &step, probe);
  return ops.linear(y, m.weights.action_out);  // [horizon, action_dim]
}

Tensor denoise(Ops& ops, const Model& m, KvCache& cache, const Schedule& schedule, Tensor x,
               const std::optional<Guidance>& guidance, const Probe& probe) {
  const Ops::Scope scope(ops, Module::denoise);
  for (size_t k = 0; k < schedule.steps.size(); ++k) {
    const StepTables& step = schedule.steps[k];
    const auto probe_step = [&](const std::string& stage, const Tensor& rows) {
      if (k == 0 || !stage.starts_with("expert.")) probe(fmt::format("step.{}.{}", k, stage), rows);
    };
    Tensor v = velocity(ops, m, cache, step, x, probe ? Probe(probe_step) : Probe());
    if (probe) probe_step("time_embed", step.time_embedding);
    if (probe && step.condition) probe_step("cond", step.condition);
    if (probe) probe_step("v", v);
    if (guidance) {  // err = (leftover - (x - t v)) * weights
      const Tensor clean = ops.add_scaled(x, v, -step.time);
      const Tensor error =
          ops.multiply(ops.add_scaled(guidance->leftover, clean, -1.f), guidance->weights);
      v = ops.add_scaled(v, error, -guidance_strength(step.time, guidance->max_weight));
    }
    x = ops.add_scaled(x, v, schedule.dt);
    if (probe) probe_step("x", x);
  }
  return x;
}

}  // namespace tendon
