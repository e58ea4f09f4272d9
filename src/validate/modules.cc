#include "validate/modules.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "model/blocks.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "tensor/random.h"

namespace tendon {
namespace {

using Values = std::vector<float>;

// One backend with the model on it.
struct Side {
  Ops& ops;
  const Model& model;
};

struct Matrix {
  Values values;
  Shape shape;
};

// What the reference computed on its way: the inputs of the modules.
struct Recorded {
  std::map<std::string, Matrix> stages;
  std::vector<Matrix> keys, values;  // per layer: prefix, then pi0's state token
  int64_t images = 0, prefix = 0;
  std::vector<int32_t> prompt;
  Matrix patches, state, noise;

  const Matrix& of(const std::string& stage) const {
    const auto found = stages.find(stage);
    ensure(found != stages.end(), Fault::internal, "stage {} was not recorded", stage);
    return found->second;
  }
};

Matrix read(Ops& ops, const Tensor& x) { return {ops.download(x), x.shape()}; }
Tensor put(const Side& s, const Matrix& m) { return s.ops.upload(m.values, m.shape); }

Inputs inputs_of(const Side& s, const Recorded& r) {
  Inputs in{.images = r.images, .prompt = r.prompt};
  if (r.images > 0) in.patches = put(s, r.patches);
  if (!s.model.config.pi05()) in.state = put(s, r.state);
  return in;
}

StepTables first_step(const Side& s) {
  return make_schedule(s.ops, s.model, s.model.config.num_steps, TimeSequence::lerobot).steps[0];
}

Recorded record(const Side& s, const Inputs& in) {
  const Config& c = s.model.config;
  Recorded r{.images = in.images, .prompt = in.prompt};
  if (in.images > 0) r.patches = read(s.ops, in.patches);
  if (in.state) r.state = read(s.ops, in.state);
  r.noise = {Values(static_cast<size_t>(c.horizon * c.action_dim)), {c.horizon, c.action_dim}};
  normal_noise(0, 0, r.noise.values);
  const Probe probe = [&](const std::string& stage, const Tensor& x) {
    r.stages[stage] = read(s.ops, x);
  };
  KvCache cache = make_cache(s.ops, c);
  fill_kv_cache(s.ops, s.model, embed_prefix(s.ops, s.model, in, probe), cache, probe);
  r.prefix = cache.prefix;
  if (in.state) append_state(s.ops, s.model, in.state, cache);
  const int64_t rows = cache.prefix + (in.state ? 1 : 0);
  for (const LayerKv& kv : cache.layers) {
    r.keys.push_back(read(s.ops, s.ops.slice_rows(kv.keys, 0, rows)));
    r.values.push_back(read(s.ops, s.ops.slice_rows(kv.values, 0, rows)));
  }
  velocity(s.ops, s.model, cache, first_step(s), put(s, r.noise), probe);
  return r;
}

// A cache that holds the reference's keys and values, with room for the actions.
LayerKv cache_of(const Side& s, const Recorded& r, size_t layer) {
  const auto with_room = [&](Matrix m) {
    m.shape = {m.shape[0] + s.model.config.horizon, m.shape[1]};
    m.values.resize(static_cast<size_t>(m.shape.count()));
    return put(s, m);
  };
  return {with_room(r.keys[layer]), with_room(r.values[layer])};
}

// Relative L2 up to which a module passes: three times, in f32 ten times, the largest of four small
// models on cpu and on ttnn's fake device (the values: docs/testing.md).
struct Gate {
  double f32, bf16, narrow;  // narrow: int8, bfp8

  Bounds in(const std::string& precision) const {
    return Bounds::of_noise(precision == "f32" ? f32 : precision == "bf16" ? bf16 : narrow);
  }
};
constexpr Gate kSmall{1e-5, .01, .013};  // the embedding of words, time, actions and state
constexpr Gate kBlock{1e-5, .018, .07};  // or a part of one, in SigLIP and in the VLM
constexpr Gate kTower{1e-5, .02, .066};
constexpr Gate kExpert{1e-5, .037, .1};  // a block of it or a part
constexpr Gate kVelocity{2e-5, .073, .17};
constexpr Gate kActions{1e-5, .036, .085};

struct ModuleRun {
  std::string name;
  Gate gate;
  std::function<Values(const Side&)> run;
};

void add(std::vector<ModuleRun>& all, const std::string& name, const Gate& gate,
         const std::function<Tensor(const Side&)>& run) {
  all.push_back({name, gate, [=](const Side& s) { return s.ops.download(run(s)); }});
}

void append(Values& all, const Values& more) { all.insert(all.end(), more.begin(), more.end()); }

// The last layer whose whole block the policy computes, besides the first.
std::set<size_t> layers_of(size_t count) { return {0, count - 1}; }

void add_siglip(std::vector<ModuleRun>& all, const Config& c, const Recorded& r) {
  if (r.images == 0) return;
  for (const size_t l : layers_of(static_cast<size_t>(c.vision.depth))) {
    const Matrix& x = r.of(l == 0 ? "image.embed" : fmt::format("image.layer.{}", l - 1));
    using Part = Tensor (*)(Ops&, const VisionBlock&, const Tensor&, const VisionInput&);
    const auto part = [&](const char* what, Part run) {
      add(all, fmt::format("siglip.{}.{}", what, l), kBlock, [&r, &x, l, run](const Side& s) {
        const VisionConfig& v = s.model.config.vision;
        const int32_t visible[] = {static_cast<int32_t>(v.tokens())};
        const VisionInput in{heads_of(v), visible, r.images};
        return run(s.ops, s.model.weights.vision.blocks[l], put(s, x), in);
      });
    };
    part("attention", [](Ops& ops, const VisionBlock& w, const Tensor& in, const VisionInput& v) {
      return vision_attention(ops, w, in, v, {});
    });
    part("mlp", [](Ops& ops, const VisionBlock& w, const Tensor& in, const VisionInput&) {
      return vision_mlp(ops, w, in, {});
    });
    part("block", vision_block);
  }
  add(all, "siglip.tower", kTower, [&r](const Side& s) {
    Tensor out;
    embed_images(s.ops, s.model, put(s, r.patches), r.images,
                 [&](const std::string& stage, const Tensor& x) {
                   if (stage == "image.post_norm") out = x;
                 });
    return out;
  });
  add(all, "embed_images", kTower,
      [&r](const Side& s) { return embed_images(s.ops, s.model, put(s, r.patches), r.images); });
}

using GemmaPart = Tensor (*)(Ops&, const GemmaBlock&, const Heads&, const Tensor&, LayerKv&,
                             const BlockInput&);

// Attention, MLP and block of one layer of either tower.
void add_gemma_parts(std::vector<ModuleRun>& all, const std::string& tower, size_t layer,
                     const Gate& gate, const std::function<Tensor(const Side&, GemmaPart)>& run) {
  const std::pair<const char*, GemmaPart> parts[] = {
      {"attention",
       [](Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x, LayerKv& kv,
          const BlockInput& in) { return gemma_attention(ops, w, heads, x, kv, in, {}); }},
      {"mlp", [](Ops& ops, const GemmaBlock& w, const Heads&, const Tensor& x, LayerKv&,
                 const BlockInput& in) { return gemma_mlp(ops, w, x, in, {}); }},
      {"block", gemma_block}};
  for (const auto& [what, part] : parts)
    add(all, fmt::format("{}.{}.{}", tower, what, layer), gate,
        [run, part = part](const Side& s) { return run(s, part); });
}

void add_prefix(std::vector<ModuleRun>& all, const Model& reference, const Recorded& r) {
  add(all, "embed_language", kSmall,
      [&r](const Side& s) { return embed_prefix(s.ops, s.model, {.prompt = r.prompt}); });
  add(all, "embed_prefix", kTower,
      [&r](const Side& s) { return embed_prefix(s.ops, s.model, inputs_of(s, r)); });
  for (const size_t l : layers_of(reference.weights.vlm.blocks.size())) {
    const Matrix& x = r.of(l == 0 ? "prefix.embed" : fmt::format("vlm.layer.{}", l - 1));
    add_gemma_parts(all, "gemma_2b", l, kBlock, [&r, &x, l](const Side& s, GemmaPart part) {
      const GemmaBlock& w = s.model.weights.vlm.blocks[l];
      LayerKv kv = make_cache(s.ops, s.model.config).layers[l];
      const int32_t visible[] = {static_cast<int32_t>(r.prefix)};
      const Modulation norm1{w.norm1.scale}, norm2{w.norm2.scale};
      return part(s.ops, w, heads_of(s.model.config.vlm), put(s, x), kv,
                  {0, visible, norm1, norm2});
    });
  }
  all.push_back({"prefix_kv", kTower, [&r](const Side& s) {
                   KvCache cache = make_cache(s.ops, s.model.config);
                   fill_kv_cache(s.ops, s.model, put(s, r.of("prefix.embed")), cache);
                   Values out;
                   for (const LayerKv& kv : cache.layers)
                     for (const Tensor& t : {kv.keys, kv.values})
                       append(out, s.ops.download(s.ops.slice_rows(t, 0, cache.prefix)));
                   return out;
                 }});
}

void add_expert(std::vector<ModuleRun>& all, const Model& reference, const Recorded& r) {
  for (const size_t l : layers_of(reference.weights.expert.blocks.size())) {
    const Matrix& x = r.of(l == 0 ? "suffix" : fmt::format("expert.layer.{}", l - 1));
    add_gemma_parts(all, "gemma_300m", l, kExpert, [&r, &x, l](const Side& s, GemmaPart part) {
      LayerKv kv = cache_of(s, r, l);
      const StepTables step = first_step(s);
      const int64_t first = r.keys[l].shape[0];
      const int32_t visible[] = {static_cast<int32_t>(first + s.model.config.horizon)};
      return part(s.ops, s.model.weights.expert.blocks[l], heads_of(s.model.config.vlm), put(s, x),
                  kv, {first, visible, step.attention[l], step.mlp[l]});
    });
  }
}

void add_suffix(std::vector<ModuleRun>& all, const Config& c, const Recorded& r) {
  const auto embed_actions = [&r](const Side& s) {
    return s.ops.linear(put(s, r.noise), s.model.weights.action_in);
  };
  add(all, "time_embedding", kSmall, [](const Side& s) {
    const StepTables step = first_step(s);
    return step.condition ? step.condition : step.mix;
  });
  if (c.pi05())
    all.push_back({"modulation", kSmall, [](const Side& s) {
                     const Modulation first = first_step(s).attention[0];
                     Values out;
                     for (const Tensor& t : {first.scale, first.shift, first.gate})
                       append(out, s.ops.download(t));
                     return out;
                   }});
  add(all, "embed_actions", kSmall, embed_actions);
  if (!c.pi05()) {
    add(all, "embed_state", kSmall,
        [&r](const Side& s) { return s.ops.linear(put(s, r.state), s.model.weights.state); });
    add(all, "fuse_action_time", kSmall, [=](const Side& s) {
      return fuse_action_time(s.ops, s.model, first_step(s), embed_actions(s));
    });
  }
  add(all, "embed_suffix", kSmall,
      [&r](const Side& s) { return embed_suffix(s.ops, s.model, first_step(s), put(s, r.noise)); });
  add(all, "project_output", kSmall, [&r](const Side& s) {
    return s.ops.linear(put(s, r.of("expert.norm")), s.model.weights.action_out);
  });
}

void add_whole(std::vector<ModuleRun>& all, const Recorded& r) {
  add(all, "velocity", kVelocity, [&r](const Side& s) {
    KvCache cache{.prefix = r.prefix};
    for (size_t l = 0; l < r.keys.size(); ++l) cache.layers.push_back(cache_of(s, r, l));
    return velocity(s.ops, s.model, cache, first_step(s), put(s, r.noise));
  });
  add(all, "actions", kActions, [&r](const Side& s) {
    const Config& c = s.model.config;
    const Inputs in = inputs_of(s, r);
    KvCache cache = make_cache(s.ops, c);
    fill_kv_cache(s.ops, s.model, embed_prefix(s.ops, s.model, in), cache);
    if (in.state) append_state(s.ops, s.model, in.state, cache);
    const Schedule schedule = make_schedule(s.ops, s.model, c.num_steps, TimeSequence::lerobot);
    return denoise(s.ops, s.model, cache, schedule, put(s, r.noise));
  });
}

}  // namespace

ModuleCheck judge(const std::string& module, const Bounds& gate, std::span<const float> got,
                  std::span<const float> expected) {
  constexpr size_t kSampleMax = 800;
  ModuleCheck check{.module = module, .apart = compare(got, expected), .gate = gate};
  check.failed = beyond(gate, check.apart);
  const size_t stride = std::max<size_t>(1, got.size() / kSampleMax);
  for (size_t i = 0; i < got.size(); i += stride) check.sample.emplace_back(expected[i], got[i]);
  return check;
}

Validation validate_modules(OpenedEngine& tested, OpenedEngine& reference,
                            const Observation& observation, const std::string& only) {
  const Side plain{reference.ops, reference.policy->model()};
  const Side side{tested.ops, tested.policy->model()};
  const Recorded r = record(plain, reference.policy->inputs(observation));
  std::vector<ModuleRun> all;
  add_siglip(all, plain.model.config, r);
  add_prefix(all, plain.model, r);
  add_suffix(all, plain.model.config, r);
  add_expert(all, plain.model, r);
  add_whole(all, r);
  Validation v{.backend = std::string(tested.kernels->name()),
               .method = tested.kernels->method(),
               .precision = tested.options.precision};
  std::vector<std::string> names;
  for (const ModuleRun& module : all) {
    names.push_back(module.name);
    if (!module.name.starts_with(only)) continue;
    v.checks.push_back(
        judge(module.name, module.gate.in(v.precision), module.run(side), module.run(plain)));
  }
  ensure(!v.checks.empty(), Fault::usage, "no module '{}'; nearest: '{}'", only,
         nearest(only, names));
  return v;
}

}  // namespace tendon
