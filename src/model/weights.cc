#include "model/weights.h"

#include <array>
#include <initializer_list>

#include "tensor/check.h"

namespace tendon {
namespace {

using Use = Parameter::Use;

// Where the published checkpoints keep each network.
const std::string kVision = kPaliGemma + "model.vision_tower.vision_model.";
const std::string kProjector = kPaliGemma + "model.multi_modal_projector.";
const std::string kLanguage = kPaliGemma + "model.language_model.";
const std::string kExpert = "paligemma_with_expert.gemma_expert.model.";

// A matrix of a checkpoint without its place: "q_proj", [2048, 2048].
struct Matrix {
  std::string name;
  Shape shape;
};

constexpr bool kBias = true, kNoBias = false;

Module module_of(Part part) {
  if (part == Part::vision || part == Part::projector) return Module::siglip;
  if (part == Part::vlm) return Module::vlm;
  return part == Part::expert ? Module::expert : Module::pi0;
}

// Goes through the tensors of a model. Each method names the tensors of one member of Weights, with
// their shapes; where there is a source, it also makes the member of them.
class Walk {
 public:
  Walk() = default;  // lists only
  Walk(Ops& ops, WeightSource& source, const LoadOptions& options)
      : ops_(&ops), source_(&source), options_(options) {}

  Part part = Part::vision;
  Use use = Use::inference;
  std::vector<Parameter> listed;

  // A vector becomes one row. `plus` is added to every value.
  void tensor(Tensor& to, const std::string& name, const Shape& shape, float plus = 0.f) {
    const Parameter p = list(name, shape);
    if (!loads()) return;
    std::vector<float> v = values(p);
    for (float& x : v) x += plus;
    to = ops_->upload(v, shape.rank() == 1 ? Shape{1, shape[0]} : shape);
  }

  void layer_norm(LayerNorm& to, const std::string& name, int64_t width) {
    tensor(to.scale, name + ".weight", {width});
    tensor(to.shift, name + ".bias", {width});
  }

  // Projections of the same input as one weight, stacked by rows. `parts`: kind, head widths.
  void weight(Weight& to, const std::string& base, std::initializer_list<Matrix> projections,
              bool bias, WeightParts parts = {}) {
    std::vector<Parameter> matrices, biases;
    for (const Matrix& m : projections) {
      matrices.push_back(list(base + m.name + ".weight", m.shape));
      if (bias) biases.push_back(list(base + m.name + ".bias", {m.shape[0]}));
    }
    if (!loads()) return;
    const bool large = parts.kind == WeightKind::linear || parts.kind == WeightKind::gated;
    parts.name = base + projections.begin()->name;
    parts.module = module_of(part);
    if (large) parts.packed = source_->packed(parts.name);
    parts.inputs = matrices.front().shape.count() / matrices.front().shape[0];
    for (const Parameter& m : matrices) {
      parts.outputs += m.shape[0];
      if (parts.packed.empty()) parts.matrices.push_back(source_->get(m.name, m.shape));
    }
    for (const Parameter& b : biases) {
      const std::vector<float> more = values(b);
      parts.bias.insert(parts.bias.end(), more.begin(), more.end());
    }
    to = ops_->prepare(parts);
    if (options_.prepared && large) options_.prepared(parts, to);
  }

  // RMSNorm; `adaptive`: conditioned on time, dense [3 * width, width] is scale over shift over
  // gate.
  void rms_norm(GemmaNorm& to, const std::string& name, int64_t width, bool adaptive) {
    if (!adaptive) return tensor(to.scale, name + ".weight", {width}, 1.f);
    const Parameter dense = list(name + ".dense.weight", {3 * width, width});
    const Parameter bias = list(name + ".dense.bias", {3 * width});
    if (!loads()) return;
    const bool packed = !source_->packed(name + ".scale").empty();
    const HostTensor matrix = packed ? HostTensor() : source_->get(dense.name, dense.shape);
    std::vector<float> b = values(bias);
    for (auto scale = b.begin(); scale < b.begin() + width; ++scale) *scale += 1.f;
    const auto third = [&](const char* what, int64_t i) {
      WeightParts parts{.name = name + "." + what,
                        .kind = WeightKind::small,
                        .bias = {b.begin() + i * width, b.begin() + (i + 1) * width},
                        .outputs = width,
                        .inputs = width};
      if (packed)
        parts.packed = source_->packed(parts.name);
      else
        parts.matrices = {matrix.rows(i * width, (i + 1) * width)};
      Weight weight = ops_->prepare(parts);
      if (options_.prepared) options_.prepared(parts, weight);
      return weight;
    };
    to = {{}, third("scale", 0), third("shift", 1), third("gate", 2)};
  }

  // W [action; time] = W_action action + W_time time, so that the time half is computed once.
  void halves(Weight& action, Weight& time, const std::string& name, int64_t width) {
    const Parameter both = list(name + ".weight", {width, 2 * width});
    const Parameter bias = list(name + ".bias", {width});
    if (!loads()) return;
    const std::vector<float> v = values(both);
    const auto half = [&](const char* what, int64_t h, std::vector<float> b) {
      std::vector<float> columns;
      for (int64_t r = 0; r < width; ++r)
        columns.insert(columns.end(), v.begin() + (2 * r + h) * width,
                       v.begin() + (2 * r + h + 1) * width);
      return ops_->prepare({name + what,
                            WeightKind::small,
                            {host_tensor(name + what, {width, width}, std::move(columns))},
                            std::move(b)});
    };
    action = half(".action", 0, {});
    time = half(".time", 1, values(bias));
  }

 private:
  bool loads() const { return source_ && use == Use::inference; }

  Parameter list(const std::string& name, const Shape& shape) {
    return listed.emplace_back(Parameter{name, shape, part, use});
  }

  std::vector<float> values(const Parameter& p) const {
    std::vector<float> v(static_cast<size_t>(p.shape.count()));
    convert_to_f32(source_->get(p.name, p.shape), v);
    return v;
  }

  Ops* ops_ = nullptr;
  WeightSource* source_ = nullptr;
  LoadOptions options_;
};

void walk_vision(Walk& walk, Vision& vision, const VisionConfig& c) {
  const int64_t w = c.width, head = w / c.heads;
  const std::string embeddings = kVision + "embeddings.";
  walk.weight(vision.patch, embeddings, {{"patch_embedding", {w, 3, c.patch, c.patch}}}, kBias,
              {.kind = WeightKind::small});
  walk.tensor(vision.position, embeddings + "position_embedding.weight", {c.tokens(), w});
  vision.blocks.resize(static_cast<size_t>(c.depth));
  for (size_t i = 0; i < vision.blocks.size(); ++i) {
    VisionBlock& b = vision.blocks[i];
    const std::string layer = fmt::format("{}encoder.layers.{}.", kVision, i);
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    walk.layer_norm(b.norm1, layer + "layer_norm1", w);
    walk.layer_norm(b.norm2, layer + "layer_norm2", w);
    walk.weight(b.qkv, attention, {{"q_proj", {w, w}}, {"k_proj", {w, w}}, {"v_proj", {w, w}}},
                kBias, {.output_head_width = head});
    walk.weight(b.output, attention, {{"out_proj", {w, w}}}, kBias, {.input_head_width = head});
    walk.weight(b.up, mlp, {{"fc1", {c.mlp, w}}}, kBias);
    walk.weight(b.down, mlp, {{"fc2", {w, c.mlp}}}, kBias);
  }
  walk.layer_norm(vision.norm, kVision + "post_layernorm", w);
}

struct BlockKind {
  bool adaptive = false;  // norms are conditioned on time
  bool kv_only = false;   // norm1, k and v are all that inference needs
};

void walk_block(Walk& walk, GemmaBlock& b, const std::string& layer, const GemmaConfig& c,
                const BlockKind& kind) {
  const int64_t w = c.width;
  const Matrix query{"q_proj", {c.heads * c.head_dim, w}},
      keys{"k_proj", {c.kv_heads * c.head_dim, w}}, values{"v_proj", keys.shape};
  const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
  const WeightParts heads{.output_head_width = c.head_dim};
  walk.rms_norm(b.norm1, layer + "input_layernorm", w, kind.adaptive);
  if (kind.kv_only) {
    walk.weight(b.qkv, attention, {keys, values}, kNoBias, heads);
    walk.use = Use::none;
    walk.weight(b.qkv, attention, {query}, kNoBias);
  } else {
    walk.weight(b.qkv, attention, {query, keys, values}, kNoBias, heads);
  }
  walk.rms_norm(b.norm2, layer + "post_attention_layernorm", w, kind.adaptive);
  walk.weight(b.output, attention, {{"o_proj", {w, query.shape[0]}}}, kNoBias,
              {.input_head_width = c.head_dim});
  walk.weight(b.gated, mlp, {{"gate_proj", {c.mlp, w}}, {"up_proj", {c.mlp, w}}}, kNoBias,
              {.kind = WeightKind::gated});
  walk.weight(b.down, mlp, {{"down_proj", {w, c.mlp}}}, kNoBias);
  walk.use = Use::inference;
}

void walk_prefix(Walk& walk, Gemma& vlm, const GemmaConfig& c, bool whole) {
  vlm.blocks.resize(static_cast<size_t>(c.depth));
  for (size_t i = 0; i < vlm.blocks.size(); ++i)
    walk_block(walk, vlm.blocks[i], fmt::format("{}layers.{}.", kLanguage, i), c,
               {.kv_only = !whole && i + 1 == vlm.blocks.size()});
  if (!whole) walk.use = Use::optional;
  walk.rms_norm(vlm.norm, kLanguage + "norm", c.width, false);
  walk.use = Use::inference;
  if (whole) return;
  vlm.norm = vlm.blocks.back().norm1;
  vlm.last_kv = vlm.blocks.back().qkv;
  vlm.blocks.pop_back();
}

void walk_expert(Walk& walk, Gemma& expert, const GemmaConfig& c, bool adaptive) {
  expert.blocks.resize(static_cast<size_t>(c.depth));
  for (size_t i = 0; i < expert.blocks.size(); ++i)
    walk_block(walk, expert.blocks[i], fmt::format("{}layers.{}.", kExpert, i), c,
               {.adaptive = adaptive});
  walk.rms_norm(expert.norm, kExpert + "norm", c.width, adaptive);
}

void walk_heads(Walk& walk, Weights& w, const Config& c) {
  const int64_t width = c.expert.width;
  const auto head = [&](Weight& to, const char* name, int64_t outputs, int64_t inputs) {
    walk.weight(to, "", {{name, {outputs, inputs}}}, kBias, {.kind = WeightKind::small});
  };
  head(w.action_in, "action_in_proj", width, c.action_dim);
  head(w.action_out, "action_out_proj", c.action_dim, width);
  if (c.pi05()) {
    head(w.time_in, "time_mlp_in", width, width);
    head(w.time_out, "time_mlp_out", width, width);
  } else {
    head(w.state, "state_proj", width, c.state_dim);
    walk.halves(w.action_time_mlp_in_actions, w.action_time_mlp_in_time, "action_time_mlp_in",
                width);
    head(w.action_time_mlp_out, "action_time_mlp_out", width, width);
  }
}

Weights walk_all(Walk& walk, const Config& c, bool whole_prefix) {
  Weights w;
  walk_vision(walk, w.vision, c.vision);
  walk.part = Part::projector;
  walk.weight(w.vision.project, kProjector, {{"linear", {c.vlm.width, c.vision.width}}}, kBias);
  walk.part = Part::embedding;
  walk.weight(w.embedding, kLanguage, {{"embed_tokens", {c.vocab, c.vlm.width}}}, kNoBias,
              {.kind = WeightKind::table});
  walk.part = Part::vlm;
  walk_prefix(walk, w.vlm, c.vlm, whole_prefix);
  walk.part = Part::expert;
  walk_expert(walk, w.expert, c.expert, c.pi05());
  walk.part = Part::heads;
  walk_heads(walk, w, c);
  return w;
}

}  // namespace

std::string_view name(Part part) {
  constexpr std::array<std::string_view, 6> kNames = {"vision", "projector", "embedding",
                                                      "vlm",    "expert",    "heads"};
  return kNames[static_cast<size_t>(part)];
}

std::vector<Parameter> parameters(const Config& config) {
  Walk walk;
  walk_all(walk, config, false);
  return std::move(walk.listed);
}

Weights load_weights(Ops& ops, WeightSource& source, const Config& config,
                     const LoadOptions& options) {
  check(config);
  Walk walk(ops, source, options);
  return walk_all(walk, config, options.whole_prefix);
}

}  // namespace tendon
