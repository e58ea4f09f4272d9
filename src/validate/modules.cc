#include "validate/modules.h"

#include <algorithm>
#include <functional>
#include <map>

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

Probe into(Ops& ops, std::map<std::string, Matrix>& stages) {
  return [&](const std::string& stage, const Tensor& x) { stages[stage] = read(ops, x); };
}

Inputs inputs_of(const Side& s, const Recorded& r) {
  Inputs in{.images = r.images, .prompt = r.prompt};
  if (r.images > 0) in.patches = put(s, r.patches);
  if (!s.model.config.pi05()) in.state = put(s, r.state);
  return in;
}

Recorded record(const Side& s, const Inputs& in) {
  const Config& c = s.model.config;
  Recorded r{.images = in.images, .prompt = in.prompt};
  if (in.images > 0) r.patches = read(s.ops, in.patches);
  if (in.state) r.state = read(s.ops, in.state);
  r.noise = {Values(static_cast<size_t>(c.horizon * c.action_dim)), {c.horizon, c.action_dim}};
  normal_noise(0, 0, r.noise.values);
  const Probe probe = into(s.ops, r.stages);
  KvCache cache = make_cache(s.ops, c);
  const Tensor prefix = embed_prefix(s.ops, s.model, in, probe);
  fill_kv_cache(s.ops, s.model, prefix, cache, probe);
  r.prefix = cache.prefix;
  if (in.state) append_state(s.ops, s.model, in.state, cache);
  const int64_t rows = cache.prefix + (in.state ? 1 : 0);
  for (const LayerKv& kv : cache.layers) {
    r.keys.push_back(read(s.ops, s.ops.slice_rows(kv.keys, 0, rows)));
    r.values.push_back(read(s.ops, s.ops.slice_rows(kv.values, 0, rows)));
  }
  const Schedule schedule = make_schedule(s.ops, s.model, c.num_steps, TimeSequence::lerobot);
  velocity(s.ops, s.model, cache, schedule.steps[0], put(s, r.noise), probe);
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

struct ModuleRun {
  std::string name;
  std::function<Values(const Side&)> run;
};

// The last layer whose whole block the policy computes, besides the first.
std::vector<size_t> layers_of(size_t count) {
  return count > 1 ? std::vector<size_t>{0, count - 1} : std::vector<size_t>{0};
}

void add_siglip(std::vector<ModuleRun>& all, const Config& c, const Recorded& r) {
  if (r.images == 0) return;
  const int64_t images = r.images;
  for (const size_t l : layers_of(static_cast<size_t>(c.vision.depth))) {
    const Matrix& x = r.of(l == 0 ? "image.embed" : fmt::format("image.layer.{}", l - 1));
    using Part =
        std::function<Tensor(const Side&, const VisionBlock&, const Tensor&, const VisionInput&)>;
    const auto part = [&](const char* what, Part run) {
      all.push_back({fmt::format("siglip.{}.{}", what, l), [=, &x](const Side& s) {
                       const int32_t visible[] = {
                           static_cast<int32_t>(s.model.config.vision.tokens())};
                       const VisionInput in{heads_of(s.model.config.vision), visible, images};
                       const auto& w = s.model.weights.vision.blocks[l];
                       return s.ops.download(run(s, w, put(s, x), in));
                     }});
    };
    part("attention", [](const Side& s, const VisionBlock& w, const Tensor& in,
                         const VisionInput& v) { return vision_attention(s.ops, w, in, v, {}); });
    part("mlp", [](const Side& s, const VisionBlock& w, const Tensor& in, const VisionInput&) {
      return vision_mlp(s.ops, w, in, {});
    });
    part("block", [](const Side& s, const VisionBlock& w, const Tensor& in, const VisionInput& v) {
      return vision_block(s.ops, w, in, v);
    });
  }
  all.push_back({"siglip.tower", [&r](const Side& s) {
                   Values out;
                   embed_images(s.ops, s.model, put(s, r.patches), r.images,
                                [&](const std::string& stage, const Tensor& x) {
                                  if (stage == "image.post_norm") out = s.ops.download(x);
                                });
                   return out;
                 }});
}

void add_prefix(std::vector<ModuleRun>& all, const Recorded& r) {
  if (r.images > 0)
    all.push_back({"embed_images", [&r](const Side& s) {
                     return s.ops.download(
                         embed_images(s.ops, s.model, put(s, r.patches), r.images));
                   }});
  all.push_back({"embed_language", [&r](const Side& s) {
                   return s.ops.download(embed_prefix(s.ops, s.model, {.prompt = r.prompt}));
                 }});
  all.push_back({"embed_prefix", [&r](const Side& s) {
                   return s.ops.download(embed_prefix(s.ops, s.model, inputs_of(s, r)));
                 }});
}

using GemmaPart = std::function<Tensor(const Side&, const GemmaBlock&, const Tensor&, LayerKv&,
                                       const BlockInput&)>;

// Attention, MLP and block of one layer of either tower.
template <class Run>
void add_gemma_parts(std::vector<ModuleRun>& all, const std::string& tower, size_t layer,
                     const Run& run) {
  const std::pair<const char*, GemmaPart> parts[] = {
      {"attention",
       [](const Side& s, const GemmaBlock& w, const Tensor& x, LayerKv& kv, const BlockInput& in) {
         return gemma_attention(s.ops, w, heads_of(s.model.config.vlm), x, kv, in, {});
       }},
      {"mlp", [](const Side& s, const GemmaBlock& w, const Tensor& x, LayerKv&,
                 const BlockInput& in) { return gemma_mlp(s.ops, w, x, in, {}); }},
      {"block",
       [](const Side& s, const GemmaBlock& w, const Tensor& x, LayerKv& kv, const BlockInput& in) {
         return gemma_block(s.ops, w, heads_of(s.model.config.vlm), x, kv, in);
       }}};
  for (const auto& [what, part] : parts)
    all.push_back({fmt::format("{}.{}.{}", tower, what, layer),
                   [=, part = part](const Side& s) { return s.ops.download(run(s, part)); }});
}

void add_paligemma(std::vector<ModuleRun>& all, const Model& reference, const Recorded& r) {
  for (const size_t l : layers_of(reference.weights.vlm.blocks.size())) {
    const Matrix& x = r.of(l == 0 ? "prefix.embed" : fmt::format("vlm.layer.{}", l - 1));
    add_gemma_parts(all, "gemma_2b", l, [&r, &x, l](const Side& s, const GemmaPart& part) {
      const GemmaBlock& w = s.model.weights.vlm.blocks[l];
      LayerKv kv = make_cache(s.ops, s.model.config).layers[l];
      const int32_t visible[] = {static_cast<int32_t>(r.prefix)};
      const Modulation norm1{w.norm1.scale}, norm2{w.norm2.scale};
      return part(s, w, put(s, x), kv, {0, visible, norm1, norm2});
    });
  }
  all.push_back({"prefix_kv", [&r](const Side& s) {
                   KvCache cache = make_cache(s.ops, s.model.config);
                   fill_kv_cache(s.ops, s.model, put(s, r.of("prefix.embed")), cache);
                   Values out;
                   for (const LayerKv& kv : cache.layers)
                     for (const Tensor* t : {&kv.keys, &kv.values}) {
                       const Values rows = s.ops.download(s.ops.slice_rows(*t, 0, cache.prefix));
                       out.insert(out.end(), rows.begin(), rows.end());
                     }
                   return out;
                 }});
}

StepTables first_step(const Side& s) {
  return make_schedule(s.ops, s.model, s.model.config.num_steps, TimeSequence::lerobot).steps[0];
}

void add_expert(std::vector<ModuleRun>& all, const Model& reference, const Recorded& r) {
  for (const size_t l : layers_of(reference.weights.expert.blocks.size())) {
    const Matrix& x = r.of(l == 0 ? "suffix" : fmt::format("expert.layer.{}", l - 1));
    add_gemma_parts(all, "gemma_300m", l, [&r, &x, l](const Side& s, const GemmaPart& part) {
      LayerKv kv = cache_of(s, r, l);
      const StepTables step = first_step(s);
      const int64_t first = r.keys[l].shape[0];
      const int32_t visible[] = {static_cast<int32_t>(first + s.model.config.horizon)};
      return part(s, s.model.weights.expert.blocks[l], put(s, x), kv,
                  {first, visible, step.attention[l], step.mlp[l]});
    });
  }
}

void add_suffix(std::vector<ModuleRun>& all, const Config& c, const Recorded& r) {
  const auto embed_actions = [&r](const Side& s) {
    return s.ops.linear(put(s, r.noise), s.model.weights.action_in);
  };
  all.push_back({"time_embedding", [](const Side& s) {
                   const StepTables step = first_step(s);
                   return s.ops.download(step.condition ? step.condition : step.mix);
                 }});
  if (c.pi05())
    all.push_back({"modulation", [](const Side& s) {
                     const StepTables step = first_step(s);
                     Values out = s.ops.download(step.attention[0].scale);
                     for (const Tensor& t : {step.attention[0].shift, step.attention[0].gate}) {
                       const Values row = s.ops.download(t);
                       out.insert(out.end(), row.begin(), row.end());
                     }
                     return out;
                   }});
  all.push_back({"embed_actions", [=](const Side& s) { return s.ops.download(embed_actions(s)); }});
  if (!c.pi05()) {
    all.push_back({"embed_state", [&r](const Side& s) {
                     return s.ops.download(s.ops.linear(put(s, r.state), s.model.weights.state));
                   }});
    all.push_back({"fuse_action_time", [=](const Side& s) {
                     return s.ops.download(
                         fuse_action_time(s.ops, s.model, first_step(s), embed_actions(s)));
                   }});
  }
  all.push_back({"embed_suffix", [&r](const Side& s) {
                   return s.ops.download(
                       embed_suffix(s.ops, s.model, first_step(s), put(s, r.noise)));
                 }});
  all.push_back({"project_output", [&r](const Side& s) {
                   return s.ops.download(
                       s.ops.linear(put(s, r.of("expert.norm")), s.model.weights.action_out));
                 }});
}

void add_whole(std::vector<ModuleRun>& all, const Recorded& r) {
  all.push_back({"velocity", [&r](const Side& s) {
                   KvCache cache{.prefix = r.prefix};
                   for (size_t l = 0; l < r.keys.size(); ++l)
                     cache.layers.push_back(cache_of(s, r, l));
                   return s.ops.download(
                       velocity(s.ops, s.model, cache, first_step(s), put(s, r.noise)));
                 }});
  all.push_back({"actions", [&r](const Side& s) {
                   const Config& c = s.model.config;
                   const Inputs in = inputs_of(s, r);
                   KvCache cache = make_cache(s.ops, c);
                   fill_kv_cache(s.ops, s.model, embed_prefix(s.ops, s.model, in), cache);
                   if (in.state) append_state(s.ops, s.model, in.state, cache);
                   const Schedule schedule =
                       make_schedule(s.ops, s.model, c.num_steps, TimeSequence::lerobot);
                   return s.ops.download(denoise(s.ops, s.model, cache, schedule, put(s, r.noise)));
                 }});
}

ModuleCheck judge(const std::string& module, const Values& got, const Values& expected,
                  double gate) {
  constexpr size_t kSampleMax = 800;
  ModuleCheck check{.module = module, .apart = compare(got, expected), .gate = gate};
  check.passed = check.apart.pcc >= gate;  // false for NaN
  const size_t stride = std::max<size_t>(1, got.size() / kSampleMax);
  for (size_t i = 0; i < got.size(); i += stride) check.sample.emplace_back(expected[i], got[i]);
  return check;
}

}  // namespace

bool Validation::passed() const {
  return std::ranges::all_of(checks, [](const ModuleCheck& c) { return c.passed; });
}

double gate_of(const std::string& module, const std::string& precision) {
  struct Gate {
    const char* prefix;
    double bf16, narrow;  // narrow: int8, bfp8
  };
  constexpr Gate kGates[] = {{"siglip.tower", .995, .99}, {"siglip.", .99, .99},
                             {"gemma_", .995, .99},       {"prefix_kv", .995, .99},
                             {"velocity", .995, .98},     {"actions", .99, .93}};
  if (precision == "f32") return .99999;
  for (const Gate& g : kGates)
    if (module.starts_with(g.prefix)) return precision == "bf16" ? g.bf16 : g.narrow;
  return precision == "bf16" ? .999 : .99;
}

Validation validate_modules(OpenedEngine& tested, OpenedEngine& reference,
                            const Observation& observation, const std::string& only) {
  const Side plain{reference.ops, reference.policy->model()};
  const Side side{tested.ops, tested.policy->model()};
  const Recorded r = record(plain, reference.policy->inputs(observation));
  std::vector<ModuleRun> all;
  add_siglip(all, plain.model.config, r);
  add_prefix(all, r);
  add_paligemma(all, plain.model, r);
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
        judge(module.name, module.run(side), module.run(plain), gate_of(module.name, v.precision)));
  }
  ensure(!v.checks.empty(), Fault::usage, "no module '{}'; nearest: '{}'", only,
         nearest(only, names));
  return v;
}

}  // namespace tendon
