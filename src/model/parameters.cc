#include "model/parameters.h"

#include <algorithm>
#include <array>
#include <set>

#include "tensor/check.h"

namespace tendon {
namespace {

struct List {
  std::vector<Parameter> all;
  Part part = Part::vision;

  void add(const std::string& name, const Shape& shape) { all.push_back({name, shape, part}); }
  void linear(const std::string& name, int64_t outputs, int64_t inputs, bool bias = true) {
    add(name + ".weight", {outputs, inputs});
    if (bias) add(name + ".bias", {outputs});
  }
  void layer_norm(const std::string& name, int64_t width) {
    add(name + ".weight", {width});
    add(name + ".bias", {width});
  }
};

void add_vision(List& list, const VisionConfig& c) {
  list.add(kVision + "embeddings.patch_embedding.weight", {c.width, 3, c.patch, c.patch});
  list.add(kVision + "embeddings.patch_embedding.bias", {c.width});
  list.add(kVision + "embeddings.position_embedding.weight", {c.tokens(), c.width});
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string layer = fmt::format("{}encoder.layers.{}.", kVision, i);
    for (const char* projection : {"q_proj", "k_proj", "v_proj", "out_proj"})
      list.linear(layer + "self_attn." + projection, c.width, c.width);
    list.layer_norm(layer + "layer_norm1", c.width);
    list.layer_norm(layer + "layer_norm2", c.width);
    list.linear(layer + "mlp.fc1", c.mlp, c.width);
    list.linear(layer + "mlp.fc2", c.width, c.mlp);
  }
  list.layer_norm(kVision + "post_layernorm", c.width);
}

void add_gemma(List& list, const std::string& base, const GemmaConfig& c, bool adaptive) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const auto norm = [&](const std::string& name) {
    if (adaptive)
      list.linear(name + ".dense", 3 * c.width, c.width);
    else
      list.add(name + ".weight", {c.width});
  };
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string layer = fmt::format("{}layers.{}.", base, i);
    list.linear(layer + "self_attn.q_proj", q, c.width, false);
    list.linear(layer + "self_attn.k_proj", kv, c.width, false);
    list.linear(layer + "self_attn.v_proj", kv, c.width, false);
    list.linear(layer + "self_attn.o_proj", c.width, q, false);
    list.linear(layer + "mlp.gate_proj", c.mlp, c.width, false);
    list.linear(layer + "mlp.up_proj", c.mlp, c.width, false);
    list.linear(layer + "mlp.down_proj", c.width, c.mlp, false);
    norm(layer + "input_layernorm");
    norm(layer + "post_attention_layernorm");
  }
  norm(base + "norm");
}

// Stored by the training frameworks and read by no engine.
bool known_and_unused(const std::string& name) {
  return name == "paligemma_with_expert.gemma_expert.lm_head.weight" ||
         name == kPaliGemma + "lm_head.weight";
}

}  // namespace

std::string_view name(Part part) {
  constexpr std::array<std::string_view, 6> kNames = {"vision", "projector", "embedding",
                                                      "vlm",    "expert",    "heads"};
  return kNames[static_cast<size_t>(part)];
}

std::vector<Parameter> parameters(const Config& c) {
  List list;
  add_vision(list, c.vision);
  list.part = Part::projector;
  list.linear(kProjector, c.vlm.width, c.vision.width);
  list.part = Part::embedding;
  list.add(kLanguage + "embed_tokens.weight", {c.vocab, c.vlm.width});
  list.part = Part::vlm;
  add_gemma(list, kLanguage, c.vlm, false);
  list.part = Part::expert;
  add_gemma(list, kExpert, c.expert, c.pi05());
  list.part = Part::heads;
  const int64_t w = c.expert.width;
  list.linear("action_in_proj", w, c.action_dim);
  list.linear("action_out_proj", c.action_dim, w);
  if (c.pi05()) {
    list.linear("time_mlp_in", w, w);
    list.linear("time_mlp_out", w, w);
  } else {
    list.linear("state_proj", w, c.state_dim);
    list.linear("action_time_mlp_in", w, 2 * w);
    list.linear("action_time_mlp_out", w, w);
  }
  return std::move(list.all);
}

std::vector<std::string> check_parameters(WeightSource& source, const Config& config) {
  std::set<std::string> known;
  for (const Parameter& p : parameters(config)) {
    known.insert(p.name);
    // The prefix's last norm is never computed, and files without it exist.
    if (p.name == kLanguage + "norm.weight" && !source.has(p.name)) continue;
    source.check(p.name, p.shape);
  }
  std::vector<std::string> unused;
  for (const HostTensor& t : source.tensors())
    if (!known.contains(t.name) && !known_and_unused(t.name)) unused.push_back(t.name);
  return unused;
}

bool alters_a_module(const std::string& unused, const Config& config) {
  return std::ranges::any_of(parameters(config), [&](const Parameter& p) {
    return unused.starts_with(p.name.substr(0, p.name.rfind('.') + 1));
  });
}

}  // namespace tendon
