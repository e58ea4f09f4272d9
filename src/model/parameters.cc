// What the tensors of a checkpoint tell about its model, and whether they are all there.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <regex>
#include <set>

#include "model/weights.h"
#include "tensor/check.h"

namespace tendon {
namespace {

// A model of one layer whose sizes all differ: a dimension in its list of parameters tells which
// size it is.
Config example(PolicyType type) {
  return {
      .policy = type,
      .vision = {.image = 77, .patch = 7, .width = 101, .heads = 1, .mlp = 103, .depth = 1},
      .vlm = {.width = 107, .mlp = 109, .heads = 2, .kv_heads = 1, .head_dim = 113, .depth = 1},
      .expert = {.width = 127, .mlp = 131, .heads = 2, .kv_heads = 1, .head_dim = 137, .depth = 1},
      .vocab = 139,
      .action_dim = 149,
      .state_dim = 151};
}

struct Example {
  Shape shape;
  Part part;
  bool pi0 = false, pi05 = false;  // which kind of model has it
};

std::map<std::string, Example> examples() {
  std::map<std::string, Example> all;
  for (const PolicyType type : {PolicyType::pi0, PolicyType::pi05})
    for (const Parameter& p : parameters(example(type))) {
      Example& e = all.try_emplace(p.name, Example{p.shape, p.part}).first->second;
      (type == PolicyType::pi0 ? e.pi0 : e.pi05) = true;
    }
  return all;
}

// "base.layers.7.rest" is layer 7 of "base.layers.0.rest"; a name without a number is itself.
struct LayerName {
  std::string first;
  std::optional<int64_t> layer;
};

LayerName layer_name(const std::string& name) {
  constexpr std::string_view kWord = "layers.";
  constexpr uint16_t kLayersMax = 1000;
  const size_t word = name.find(kWord);
  if (word == std::string::npos) return {name, {}};
  const std::string before = name.substr(0, word + kWord.size());
  uint16_t layer = 0;
  const auto [rest, error] =
      std::from_chars(name.data() + before.size(), name.data() + name.size(), layer);
  if (error != std::errc() || layer >= kLayersMax) return {name, {}};
  return {before + "0" + name.substr(static_cast<size_t>(rest - name.data())), layer};
}

struct LayerTensor {
  std::string name;
  Part tower;
  int64_t layer;
};

// What the tensors say. Each one counts, so that a damaged one does not change the expectation.
struct Votes {
  std::map<int64_t, std::map<int64_t, int64_t>> sizes;  // of the example: stored size -> tensors
  std::map<Part, std::map<int64_t, int64_t>> layers;    // layer -> its tensors
  std::vector<LayerTensor> layered;
  int64_t pi0 = 0, pi05 = 0;  // tensors that only one kind has

  explicit Votes(const WeightSource& source) {
    const std::map<std::string, Example> known = examples();
    for (const auto& [name, t] : source.tensors()) {
      const LayerName l = layer_name(name);
      const auto found = known.find(l.first);
      if (found == known.end()) continue;
      const Example& e = found->second;
      pi0 += !e.pi05;
      pi05 += !e.pi0;
      if (l.layer) {
        ++layers[e.part][*l.layer];
        layered.push_back({name, e.part, *l.layer});
      }
      for (int d = 0; t.shape.rank() == e.shape.rank() && d < t.shape.rank(); ++d)
        ++sizes[e.shape[d]][t.shape[d]];
    }
  }

  // The most common stored size; `otherwise` where no tensor tells.
  int64_t size(int64_t of_example, int64_t otherwise) const {
    const auto found = sizes.find(of_example);
    if (found == sizes.end()) return otherwise;
    return std::ranges::max_element(found->second, {}, [](const auto& v) { return v.second; })
        ->first;
  }

  // Layers with at least half the tensors of the fullest one.
  int64_t depth(Part tower) const {
    const auto found = layers.find(tower);
    if (found == layers.end()) return 0;
    int64_t fullest = 0, depth = 0;
    for (const auto& [layer, tensors] : found->second) fullest = std::max(fullest, tensors);
    for (const auto& [layer, tensors] : found->second)
      if (2 * tensors >= fullest) depth = layer + 1;
    return depth;
  }
};

PolicyType policy_of(const Votes& votes, const WeightSource& source, const OnProblem& on_problem) {
  ensure(votes.pi0 != votes.pi05, Fault::checkpoint,
         "{} is neither pi0 (state_proj, action_time_mlp_in) nor pi0.5 (time_mlp_in, adaptive "
         "norms) by its tensors' names",
         source.description());
  if (2 * std::min(votes.pi0, votes.pi05) >= std::max(votes.pi0, votes.pi05))
    on_problem({"tensor.names", source.description(),
                fmt::format("{} is neither pi0 nor pi0.5 alone: {} of its tensors belong to pi0 "
                            "only and {} to pi0.5",
                            source.description(), votes.pi0, votes.pi05)});
  return votes.pi05 > votes.pi0 ? PolicyType::pi05 : PolicyType::pi0;
}

GemmaConfig gemma_from(const Votes& votes, const GemmaConfig& e, GemmaConfig usual) {
  GemmaConfig c;
  c.width = votes.size(e.width, usual.width);
  c.mlp = votes.size(e.mlp, usual.mlp);
  // One key/value head: its width is the head size. Several cannot be told from the shapes.
  c.kv_heads = 1;
  c.head_dim = votes.size(e.head_dim, usual.head_dim);
  c.heads = votes.size(e.heads * e.head_dim, usual.heads * c.head_dim) / c.head_dim;
  c.depth = std::max(votes.depth(Part::vlm), votes.depth(Part::expert));
  return c;
}

VisionConfig vision_from(const Votes& votes, const VisionConfig& e) {
  VisionConfig c;
  c.width = votes.size(e.width, c.width);
  c.mlp = votes.size(e.mlp, c.mlp);
  c.patch = votes.size(e.patch, c.patch);
  const auto tokens = static_cast<double>(votes.size(e.tokens(), c.tokens()));
  c.image = std::llround(std::sqrt(tokens)) * c.patch;
  c.depth = votes.depth(Part::vision);
  c.heads = c.width % 72 == 0 ? c.width / 72 : 1;
  return c;
}

}  // namespace

Config config_from_weights(const WeightSource& source, bool heads_known,
                           const OnProblem& on_problem) {
  const Votes votes(source);
  Config c = full_size(policy_of(votes, source, on_problem));
  for (const Part tower : {Part::vision, Part::vlm, Part::expert})
    ensure(votes.depth(tower) > 0, Fault::checkpoint,
           "{} has no layer of {}; is it a pi0 or pi0.5 model?", source.description(), name(tower));
  const Config e = example(c.policy);
  c.vision = vision_from(votes, e.vision);
  c.vlm = gemma_from(votes, e.vlm, c.vlm);
  c.expert = gemma_from(votes, e.expert, c.expert);
  c.vocab = votes.size(e.vocab, c.vocab);
  c.action_dim = votes.size(e.action_dim, c.action_dim);
  c.state_dim = votes.size(e.state_dim, c.action_dim);
  ensure(heads_known || c.vision.width % 72 == 0, Fault::checkpoint,
         "{}: a vision width of {} does not fall into heads of 72; say {{\"vision\": {{\"heads\": "
         "N}}}} in tendon.json beside the checkpoint or in --config FILE",
         source.description(), c.vision.width);
  // A shorter model would fit what is left of one whose names are damaged.
  for (const LayerTensor& t : votes.layered) {
    const int64_t depth = t.tower == Part::vision ? c.vision.depth : c.vlm.depth;
    if (t.layer >= depth)
      on_problem({"tensor.layer", t.name,
                  fmt::format("{} has {}, but most tensors of that layer are missing: only {} are "
                              "whole",
                              source.description(), t.name, depth)});
  }
  return c;
}

std::vector<std::string> check_parameters(const WeightSource& source, const Config& config,
                                          const OnProblem& on_problem) {
  const NamedTensors& stored = source.tensors();
  std::set<std::string> known;
  for (const Parameter& p : parameters(config)) {
    known.insert(p.name);
    if (p.use == Parameter::Use::optional && !stored.contains(p.name)) continue;
    if (const auto problem = find_fault(source, p.name, p.shape)) on_problem(*problem);
  }
  std::vector<std::string> unused;
  for (const auto& [name, tensor] : stored)
    if (!known.contains(name) && !is_unread(name)) unused.push_back(name);
  return unused;
}

bool alters_a_module(const std::string& unused, const Config& config) {
  // A module of its own inside a layer, or by its name; buffers are made anew by the frameworks.
  static const std::regex kTrained(
      R"(lora|adapter|prefix_tun|prompt_enc|prompt_emb|(^|\.)layers\.)", std::regex::icase);
  static const std::regex kBuffer(R"(\.(inv_freq|position_ids|[a-z_]*cached|masked_bias)$)");
  if (std::regex_search(unused, kBuffer)) return false;
  if (std::regex_search(unused, kTrained)) return true;
  return std::ranges::any_of(parameters(config), [&](const Parameter& p) {
    return unused.starts_with(p.name.substr(0, p.name.rfind('.') + 1));
  });
}

}  // namespace tendon
