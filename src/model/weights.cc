#include "model/weights.h"

#include "model/parameters.h"
#include "tensor/check.h"

namespace tendon {
namespace {

std::vector<float> values(const HostTensor& t) {
  std::vector<float> v(static_cast<size_t>(t.shape.count()));
  convert_to_f32(t, v);
  return v;
}

// Reads tensors by name and shape and hands them to the backend.
struct Loader {
  Ops& ops;
  WeightSource& source;
  const LoadOptions& options;

  std::vector<float> vector(const std::string& name, int64_t n) const {
    return values(source.get(name, {n}));
  }

  Tensor row(const std::string& name, int64_t n, float plus = 0.f) const {
    std::vector<float> v = vector(name, n);
    for (float& x : v) x += plus;
    return ops.upload(v, {1, n});
  }

  Weight linear(const std::string& name, int64_t outputs, int64_t inputs, bool bias,
                WeightKind kind, int64_t input_head_width = 0) const {
    WeightParts parts{.kind = kind, .input_head_width = input_head_width};
    return stacked("", {{name, outputs}}, inputs, bias, std::move(parts));
  }

  // q, k and v, or some of them.
  Weight heads(const std::string& base, const std::vector<std::pair<std::string, int64_t>>& names,
               int64_t inputs, bool bias, int64_t head_width) const {
    WeightParts parts{.kind = WeightKind::linear, .output_head_width = head_width};
    return stacked(base, names, inputs, bias, std::move(parts));
  }

  Weight head(const std::string& name, int64_t outputs, int64_t inputs) const {
    return linear(name, outputs, inputs, true, WeightKind::head);
  }

  LayerNorm layer_norm(const std::string& name, int64_t n) const {
    return {row(name + ".weight", n), row(name + ".bias", n)};
  }

  // Several projections of the same input as one weight, stacked in the order of `names`.
  Weight stacked(const std::string& base, const std::vector<std::pair<std::string, int64_t>>& names,
                 int64_t inputs, bool bias, WeightParts parts) const {
    parts.name = base + names.front().first;
    if (parts.kind != WeightKind::head) parts.packed = source.packed(parts.name);
    parts.inputs = inputs;
    for (const auto& [name, outputs] : names) {
      parts.outputs += outputs;
      if (parts.packed.empty())
        parts.matrices.push_back(source.get(base + name + ".weight", {outputs, inputs}));
      if (!bias) continue;
      const std::vector<float> b = vector(base + name + ".bias", outputs);
      parts.bias.insert(parts.bias.end(), b.begin(), b.end());
    }
    Weight weight = ops.prepare(parts);
    if (options.prepared && parts.kind != WeightKind::head) options.prepared(parts, weight);
    return weight;
  }
};

Vision load_vision(const Loader& load, const Config& config) {
  const VisionConfig& c = config.vision;
  const int64_t w = c.width;
  const std::string embeddings = kVision + "embeddings.";
  Vision vision;
  const HostTensor patch =
      load.source.get(embeddings + "patch_embedding.weight", {w, 3, c.patch, c.patch});
  vision.patch = load.ops.prepare({"vision.patch",
                                   WeightKind::head,
                                   {patch},
                                   load.vector(embeddings + "patch_embedding.bias", w)});
  vision.position = load.ops.upload(
      values(load.source.get(embeddings + "position_embedding.weight", {c.tokens(), w})),
      {c.tokens(), w});
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string name = fmt::format("{}encoder.layers.{}.", kVision, i);
    const std::string attention = name + "self_attn.";
    vision.blocks.push_back({
        .norm1 = load.layer_norm(name + "layer_norm1", w),
        .norm2 = load.layer_norm(name + "layer_norm2", w),
        .qkv = load.heads(attention, {{"q_proj", w}, {"k_proj", w}, {"v_proj", w}}, w, true,
                          w / c.heads),
        .output = load.linear(attention + "out_proj", w, w, true, WeightKind::linear, w / c.heads),
        .up = load.linear(name + "mlp.fc1", c.mlp, w, true, WeightKind::linear),
        .down = load.linear(name + "mlp.fc2", w, c.mlp, true, WeightKind::linear),
    });
  }
  vision.norm = load.layer_norm(kVision + "post_layernorm", w);
  vision.project = load.linear(kProjector, config.vlm.width, w, true, WeightKind::linear);
  return vision;
}

// `ada`: the norm is conditioned on time; dense [3 * width, width] holds scale, shift, gate.
GemmaNorm load_norm(const Loader& load, const std::string& name, int64_t width, bool ada) {
  if (!ada) return {.scale = load.row(name + ".weight", width, 1.f)};
  const HostTensor dense = load.source.get(name + ".dense.weight", {3 * width, width});
  const std::vector<float> bias = load.vector(name + ".dense.bias", 3 * width);
  const auto third = [&](const char* part, int64_t i, float plus) {
    std::vector<float> b(bias.begin() + i * width, bias.begin() + (i + 1) * width);
    for (float& x : b) x += plus;
    return load.ops.prepare({name + "." + part,
                             WeightKind::head,
                             {dense.rows(i * width, (i + 1) * width)},
                             std::move(b)});
  };
  return {{}, third("scale", 0, 1.f), third("shift", 1, 0.f), third("gate", 2, 0.f)};
}

GemmaBlock load_block(const Loader& load, const std::string& name, const GemmaConfig& c, bool ada) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return {
      .norm1 = load_norm(load, name + "input_layernorm", c.width, ada),
      .norm2 = load_norm(load, name + "post_attention_layernorm", c.width, ada),
      .qkv = load.heads(name + "self_attn.", {{"q_proj", q}, {"k_proj", kv}, {"v_proj", kv}},
                        c.width, false, c.head_dim),
      .output =
          load.linear(name + "self_attn.o_proj", c.width, q, false, WeightKind::linear, c.head_dim),
      .gated = load.stacked(name + "mlp.", {{"gate_proj", c.mlp}, {"up_proj", c.mlp}}, c.width,
                            false, {.kind = WeightKind::gated}),
      .down = load.linear(name + "mlp.down_proj", c.width, c.mlp, false, WeightKind::linear),
  };
}

Gemma load_prefix(const Loader& load, const GemmaConfig& c, bool whole) {
  Gemma vlm;
  for (int64_t i = 0; i < c.depth - (whole ? 0 : 1); ++i)
    vlm.blocks.push_back(load_block(load, fmt::format("{}layers.{}.", kLanguage, i), c, false));
  if (whole) {
    vlm.norm = load_norm(load, kLanguage + "norm", c.width, false);
    return vlm;
  }
  const std::string last = fmt::format("{}layers.{}.", kLanguage, c.depth - 1);
  const int64_t kv = c.kv_heads * c.head_dim;
  vlm.norm = load_norm(load, last + "input_layernorm", c.width, false);
  vlm.last_kv =
      load.heads(last + "self_attn.", {{"k_proj", kv}, {"v_proj", kv}}, c.width, false, c.head_dim);
  return vlm;
}

// W [action; time] = W_action action + W_time time, so that the time half is computed once.
void load_time_mix(const Loader& load, Weights& w, int64_t width) {
  const std::string name = "action_time_mlp_in";
  const std::vector<float> both = values(load.source.get(name + ".weight", {width, 2 * width}));
  std::vector<float> halves[2];
  for (size_t r = 0; r < static_cast<size_t>(width); ++r)
    for (size_t h = 0; h < 2; ++h) {
      const auto first = both.begin() + static_cast<int64_t>((2 * r + h)) * width;
      halves[h].insert(halves[h].end(), first, first + width);
    }
  const auto half = [&](const char* part, size_t h, std::vector<float> bias) {
    return load.ops.prepare({name + part,
                             WeightKind::head,
                             {host_tensor(name + part, {width, width}, std::move(halves[h]))},
                             std::move(bias)});
  };
  w.mix_action = half(".action", 0, {});
  w.mix_time = half(".time", 1, load.vector(name + ".bias", width));
  w.mix_out = load.head("action_time_mlp_out", width, width);
}

}  // namespace

Weights load_weights(Ops& ops, WeightSource& source, const Config& config,
                     const LoadOptions& options) {
  check(config);
  const Loader load{ops, source, options};
  const int64_t width = config.expert.width;
  Weights w;
  w.vision = load_vision(load, config);
  w.embedding = ops.prepare(
      {"embed_tokens",
       WeightKind::table,
       {source.get(kLanguage + "embed_tokens.weight", {config.vocab, config.vlm.width})},
       {}});
  w.vlm = load_prefix(load, config.vlm, options.whole_prefix);
  for (int64_t i = 0; i < config.expert.depth; ++i)
    w.expert.blocks.push_back(
        load_block(load, fmt::format("{}layers.{}.", kExpert, i), config.expert, config.pi05()));
  w.expert.norm = load_norm(load, kExpert + "norm", width, config.pi05());
  w.action_in = load.head("action_in_proj", width, config.action_dim);
  w.action_out = load.head("action_out_proj", config.action_dim, width);
  if (config.pi05()) {
    w.time_in = load.head("time_mlp_in", width, width);
    w.time_out = load.head("time_mlp_out", width, width);
  } else {
    w.state = load.head("state_proj", width, config.state_dim);
    load_time_mix(load, w, width);
  }
  return w;
}

}  // namespace tendon
