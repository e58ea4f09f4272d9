// Names, shapes and types of the weights.
#include <algorithm>
#include <cmath>

#include "model/config_file.h"
#include "model/parameters.h"
#include "tensor/check.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

constexpr int64_t kLayersMax = 1000;

// "base.layers.7.mlp.fc1.weight" is base "base.layers.", layer 7, rest "mlp.fc1.weight".
struct LayerName {
  std::string base, rest;
  int64_t layer = 0;
};

std::optional<LayerName> layer_name(std::string_view name) {
  const size_t word = name.find("layers.");
  if (word == std::string_view::npos) return {};
  const size_t number = word + std::string_view("layers.").size();
  LayerName l{.base = std::string(name.substr(0, number))};
  size_t at = number;
  for (; at < name.size() && name[at] >= '0' && name[at] <= '9' && l.layer < kLayersMax; ++at)
    l.layer = 10 * l.layer + (name[at] - '0');
  if (at == number || at >= name.size() || name[at] != '.' || l.layer >= kLayersMax) return {};
  l.rest = name.substr(at + 1);
  return l;
}

template <class T>
T most_common(const std::vector<T>& votes) {
  const auto count = [&](const T& v) { return std::ranges::count(votes, v); };
  return *std::ranges::max_element(votes, {}, count);
}

// Tells sizes as a checkpoint without the fault would: of the tensors that every layer has, the
// shape that most layers have; of the others, what their neighbours say. Remembers what is wrong
// with the tensors themselves instead of throwing.
class Majority final : public WeightSource {
 public:
  Majority(const WeightSource& source, int64_t stated_state_dim)
      : source_(source), stated_state_dim_(stated_state_dim) {
    for (const HostTensor& t : source.tensors()) {
      const auto l = layer_name(t.name);
      if (l) {
        ++tensors_per_layer_[l->base][l->layer];
        shapes_[l->base + l->rest].push_back(t.shape);
      }
      const bool expert = t.name.find("gemma_expert") != std::string::npos;
      pi05_votes_ += t.name.starts_with("time_mlp_") || (expert && t.name.ends_with(".dense.bias"));
      pi0_votes_ += t.name.starts_with("state_proj.") || t.name.starts_with("action_time_mlp_") ||
                    (expert && t.name.ends_with("layernorm.weight"));
    }
  }

  bool has(std::string_view name) const override {
    if (name.ends_with(".dense.weight") || name.starts_with("time_mlp_")) return pi05();
    if (name.starts_with("state_proj.") || name.starts_with("action_time_mlp_"))
      return pi0_votes_ > 0 && !pi05();
    const auto l = layer_name(name);
    if (l) return l->layer < depth(l->base) && shapes_.contains(l->base + l->rest);
    return source_.has(name);
  }

  std::optional<Shape> shape_of(std::string_view name) const override {
    if (const auto l = layer_name(name)) {
      const auto votes = shapes_.find(l->base + l->rest);
      return votes == shapes_.end() ? std::nullopt : std::optional(most_common(votes->second));
    }
    const std::optional<Shape> stored = source_.shape_of(name);
    const auto dim = [&](int i, int64_t otherwise) {
      return stored && stored->rank() > i ? (*stored)[i] : otherwise;
    };
    const Config usual;
    if (name.ends_with("patch_embedding.weight"))
      return Shape{columns("vision", "mlp.fc1.weight"), 3, dim(2, usual.vision.patch),
                   dim(2, usual.vision.patch)};
    if (name.ends_with("position_embedding.weight")) {
      const auto rows = static_cast<double>(dim(0, usual.vision.tokens()));
      const int64_t side = std::llround(std::sqrt(rows));
      return Shape{side * side, columns("vision", "mlp.fc1.weight")};
    }
    if (name.ends_with("embed_tokens.weight"))
      return Shape{dim(0, usual.vocab), columns("language_model", "mlp.gate_proj.weight")};
    if (name == "action_in_proj.weight") return Shape{dim(0, 1), action_dim(dim(1, 0))};
    if (name == "state_proj.weight") {  // as wide as the actions, unless two sources deny it
      const int64_t usual_dim = action_dim(0), own = dim(1, usual_dim);
      return Shape{dim(0, 1), own == stated_state_dim_ ? own : usual_dim};
    }
    return stored;
  }

  void check(const std::string& name, const Shape& shape) const override {
    const std::optional<Shape> found = source_.shape_of(name);
    const char* fault = !found            ? "tensor.missing"
                        : *found == shape ? "tensor.dtype"
                                          : "tensor.shape";
    report_.attempt(fault, name, [&] { source_.check(name, shape); });
  }
  HostTensor get(const std::string& name, const Shape&) override {
    fail(Fault::internal, "{} was asked for, where only sizes are told", name);
  }
  std::vector<HostTensor> tensors() const override { return source_.tensors(); }
  std::string description() const override { return source_.description(); }
  Report take() { return std::move(report_); }

 private:
  bool pi05() const { return pi05_votes_ > pi0_votes_; }

  // Layers with at least half the tensors of the fullest one; both Gemma towers are as deep.
  int64_t depth(const std::string& base) const {
    int64_t layers = 0;
    const bool vision = base.find("vision") != std::string::npos;
    for (const auto& [tower, counts] : tensors_per_layer_) {
      if (vision ? tower != base : tower.find("vision") != std::string::npos) continue;
      int64_t fullest = 0;
      for (const auto& [layer, tensors] : counts) fullest = std::max(fullest, tensors);
      for (const auto& [layer, tensors] : counts)
        if (2 * tensors >= fullest) layers = std::max(layers, layer + 1);
    }
    return layers;
  }

  // Columns of a matrix in most layers of the tower whose name holds `tower`; 1: there is none.
  int64_t columns(std::string_view tower, std::string_view rest) const {
    for (const auto& [name, votes] : shapes_)
      if (name.find(tower) != std::string::npos && name.ends_with(rest)) {
        const Shape shape = most_common(votes);
        return shape.rank() == 2 ? shape[1] : 1;
      }
    return 1;
  }

  int64_t action_dim(int64_t of_action_in) const {
    std::vector<int64_t> votes;
    if (of_action_in > 0) votes.push_back(of_action_in);
    for (const char* name : {"action_out_proj.weight", "action_out_proj.bias"})
      if (const auto shape = source_.shape_of(name); shape && shape->rank() > 0)
        votes.push_back((*shape)[0]);
    return votes.empty() ? Config{}.action_dim : most_common(votes);
  }

  const WeightSource& source_;
  int64_t stated_state_dim_;
  std::map<std::string, std::map<int64_t, int64_t>> tensors_per_layer_;
  std::map<std::string, std::vector<Shape>> shapes_;  // base + rest, one per layer
  int64_t pi05_votes_ = 0, pi0_votes_ = 0;
  mutable Report report_;  // WeightSource::check is const
};

}  // namespace

Names check_names(const WeightSource& source, int64_t stated_state_dim) {
  Names names;
  Majority majority(source, stated_state_dim);
  Report r;
  r.attempt("tensor.tower", source.description(), [&] {
    const Config sizes = config_from_weights(majority, /*heads_known=*/true);
    for (const std::string& name : check_parameters(majority, sizes))
      r.add(alters_a_module(name, sizes) ? Finding::Level::error : Finding::Level::warning,
            "tensor.unused", name,
            fmt::format("{}: {} belongs to no parameter of {} and is not read; does it come from "
                        "another model or a newer release?",
                        source.description(), name, tendon::name(sizes.policy)));
    names.sizes = sizes;
  });
  r.append(majority.take().findings);
  names.findings = std::move(r.findings);
  return names;
}

}  // namespace tendon
