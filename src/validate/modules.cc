#include "validate/modules.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tendon/backends.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "tensor/stop_watch.h"

namespace tendon {
namespace {

using Values = std::vector<float>;

// Relative L2 up to which a module passes, about three times what was measured (docs/testing.md).
struct Gate {
  double f32, bf16, narrow;  // narrow: int8, bfp8

  Bounds in(const std::string& precision) const {
    return Bounds::of_noise(precision == "f32" ? f32 : precision == "bf16" ? bf16 : narrow);
  }
};
constexpr Gate kTensor{1e-5, .01, .022};  // from one named tensor to the next
constexpr Gate kLayer{1e-5, .015, .068};  // the same, within a layer of SigLIP or the VLM
constexpr Gate kExpertLayer{1e-5, .023, .1};
constexpr Gate kTower{1e-5, .03, .12};
constexpr Gate kVelocity{2e-5, .084, .2};
constexpr Gate kActions{1e-5, .033, .081};

// Of a row, by the first pattern that its name contains.
constexpr std::pair<std::string_view, Gate> kGates[] = {{"end_to_end.actions", kActions},
                                                        {"end_to_end.velocity", kVelocity},
                                                        {"end_to_end.", kTower},
                                                        {"expert.", kExpertLayer},
                                                        {".layer.", kLayer},
                                                        {"", kTensor}};

Gate gate_of(const std::string& row) {
  const auto is_in = [&](const auto& gate) { return row.find(gate.first) != std::string::npos; };
  return std::ranges::find_if(kGates, is_in)->second;
}

// PCC that the documents which tendon began with ask for. In a row's name the number of step and
// layer is left out.
constexpr double kAskedOfAny = .99;
constexpr std::pair<std::string_view, double> kAsked[] = {{"siglip.layer.attention", .95},
                                                          {"siglip.layer.mlp", .97},
                                                          {"siglip.layer", .95},
                                                          {"suffix", .97},
                                                          {"step.suffix", .95},
                                                          {"step.suffix.actions", .97},
                                                          {"step.suffix.velocity", .97},
                                                          {"vlm.embed", .95},
                                                          {"masks", 1}};

double asked_of(const std::string& row) {
  std::string name;
  std::istringstream parts(row);
  for (std::string part; std::getline(parts, part, '.');)
    if (part.find_first_not_of("0123456789") != std::string::npos)
      name += (name.empty() ? "" : ".") + part;
  const auto found = std::ranges::find(kAsked, name, &std::pair<std::string_view, double>::first);
  return found == std::end(kAsked) ? kAskedOfAny : found->second;
}

// Which keys each row of an attention sees, as 0 and 1. Scores are equal and key j is the unit
// vector j, so that a row of the result is 0 where the row sees nothing. Prefix, state token and
// actions lie in one cache as in a call of the policy; then two pictures that do not see each
// other.
Values seen(Ops& ops) {
  constexpr int64_t kWidth = 64, kPrefix = 37, kStateRows = 1, kActionRows = 10, kPicture = 20;
  const Heads heads{1, 1, kWidth};
  const auto matrix = [&](const char* name, float diagonal) {
    std::vector<float> values(kWidth * kWidth);
    for (size_t i = 0; i < kWidth; ++i) values[i * (kWidth + 1)] = diagonal;
    return host_tensor(name, {kWidth, kWidth}, std::move(values));
  };
  const Weight w = ops.prepare({.name = "masks",
                                .matrices = {matrix("q", 0), matrix("k", 0), matrix("v", 1)},
                                .output_head_width = kWidth,
                                .outputs = 3 * kWidth,
                                .inputs = kWidth});
  const auto rows_from = [&](int64_t first, int64_t rows) {
    std::vector<float> values(static_cast<size_t>(rows * kWidth));
    for (int64_t r = 0; r < rows; ++r) values[static_cast<size_t>(r * kWidth + first + r)] = 1;
    return ops.qkv(ops.upload(values, {rows, kWidth}), w, heads, {});
  };
  Values all;
  const auto note = [&](const Tensor& y) {
    for (const float value : ops.download(y)) all.push_back(value > 0 ? 1.F : 0.F);
  };
  const std::vector<float> stale(kWidth * kWidth, 1);  // what an earlier call left in the cache
  Tensor keys = ops.upload(stale, {kWidth, kWidth}), values = ops.upload(stale, {kWidth, kWidth});
  int64_t first = 0;
  for (const int64_t rows : {kPrefix, kStateRows, kActionRows}) {
    const Qkv qkv = rows_from(first, rows);
    ops.write_rows(keys, qkv.k, first);
    ops.write_rows(values, qkv.v, first);
    first += rows;
    const int32_t visible[] = {static_cast<int32_t>(first)};
    note(ops.attention(qkv.q, keys, values, heads, {visible}));
  }
  const Qkv pictures = rows_from(0, 2 * kPicture);
  const int32_t visible[] = {kPicture};
  note(ops.attention(pictures.q, pictures.k, pictures.v, heads, {visible, 2}));
  return all;
}

// The tensors of one call, and what each took since the one before.
struct Timed {
  Values values;
  double ms = 0;
};

// One call of the policy whose tensors `tap` sees.
Actions run(OpenedEngine& engine, const Observation& observation, const Tap& tap,
            const InferOptions& options = {}) {
  engine.ops.set_tap(tap);
  const auto stop = std::shared_ptr<void>(nullptr, [&](void*) { engine.ops.set_tap({}); });
  return engine.policy->infer(observation, options);
}

// The tensors that are stages, by the network's names, and how the stages are called.
std::vector<std::pair<std::string, std::string>> stage_tensors(const Config& config) {
  const std::string last = fmt::format("vlm.layer.{}.", config.vlm.depth - 1);
  return {{"siglip.projector", "siglip"},
          {"vlm.embed", "prefix"},
          {last + "key", "keys"},
          {last + "value", "values"},
          {"step.0.suffix.velocity", "velocity"}};
}

// Compared are the prefix, the state token and the first Euler step, of each tower the first and
// the last layers (the VLM's very last one has keys and values alone).
bool is_compared(const std::string& name, const Config& config, bool all_layers) {
  if (name.starts_with("step.") && !name.starts_with("step.0.")) return false;
  const size_t at = name.find(".layer.");
  if (at == std::string::npos || all_layers) return true;
  const int64_t layer = std::stoll(name.substr(at + std::strlen(".layer.")));
  const int64_t depth = name.starts_with("siglip") ? config.vision.depth : config.vlm.depth;
  return layer == 0 || layer >= depth - 2;
}

// The whole output of a layer, which the next one begins with.
bool is_layer(const std::string& name) {
  const size_t at = name.find(".layer.");
  return at != std::string::npos &&
         name.find('.', at + std::strlen(".layer.")) == std::string::npos;
}

// Queries, keys and values may lie in a layout of heads: another tensor cannot take their place.
bool is_replaced(const std::string& name) {
  return !name.ends_with(".query") && !name.ends_with(".key") && !name.ends_with(".value");
}

}  // namespace

Bounds action_bounds(const std::string& precision) { return kActions.in(precision); }

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
                            const Observation& observation, const ModuleChoice& choice) {
  const Config& config = reference.policy->config();
  const auto compared = [&](const std::string& name) {
    return is_compared(name, config, choice.all_layers);
  };
  std::map<std::string, Timed> expected;
  StopWatch watch;
  const auto lap_ms = [&watch](OpenedEngine& engine) {
    engine.ops.synchronize();  // what was asked of the backend before is done then
    return watch.lap_ms();
  };
  const Values actions = run(reference, observation, [&](const std::string& name, const Tensor& x) {
                           const double ms = lap_ms(reference);
                           if (is_layer(name) || compared(name))
                             expected[name] = {reference.ops.download(x), ms};
                           watch.lap_ms();
                           return x;
                         }).normalized;

  Validation v{.backend = std::string(tested.kernels->traits().name),
               .method = tested.kernels->traits().method,
               .precision = tested.options.precision};
  std::vector<std::string> names;
  const auto check = [&](const std::string& name, const Values& got, const Values& is) {
    names.push_back(name);
    if (!name.starts_with(choice.only)) return;
    const Bounds gate = name == "masks" ? Bounds::of_noise(0) : gate_of(name).in(v.precision);
    v.checks.push_back(judge(name, gate, got, is));
    v.checks.back().asked = asked_of(name);
  };
  check("masks", seen(tested.ops), seen(reference.ops));
  // Whatever is computed from a tensor begins with the reference's: errors do not add up.
  const bool timed = !tested.kernels->traits().simulated;
  run(tested, observation, [&](const std::string& name, const Tensor& x) {
    const double ms = lap_ms(tested);
    const auto found = expected.find(name);
    if (found != expected.end() && compared(name)) {
      check(name, tested.ops.download(x), found->second.values);
      if (timed && !v.checks.empty() && v.checks.back().module == name)
        v.checks.back().ms = ms, v.checks.back().reference_ms = found->second.ms;
    }
    const bool replaced = found != expected.end() && is_replaced(name);
    Tensor next = replaced ? tested.ops.upload(found->second.values, x.shape()) : x;
    watch.lap_ms();
    return next;
  });
  // Then all at once, where they do.
  for (const auto& [tensor, stage] : stage_tensors(config)) expected[stage] = expected.at(tensor);
  expected["actions"] = {actions};
  for (const auto& [stage, got] : run_stages(tested, observation, {}).stages)
    check("end_to_end." + stage, got, expected.at(stage).values);
  ensure(!v.checks.empty(), Fault::usage, "no module '{}'; nearest: '{}'", choice.only,
         nearest(choice.only, names));
  return v;
}

StagedActions run_stages(OpenedEngine& engine, const Observation& observation,
                         const InferOptions& options) {
  const auto tensors = stage_tensors(engine.policy->config());
  StagedActions out;
  const Tap tap = [&](const std::string& name, const Tensor& x) {
    for (const auto& stage : tensors)
      if (stage.first == name) out.stages.emplace_back(stage.second, engine.ops.download(x));
    return x;
  };
  out.actions = run(engine, observation, tap, options);
  out.stages.emplace_back("actions", out.actions.normalized);
  return out;
}

ModuleCheck judge_stage(const std::string& stage, const std::string& precision,
                        std::span<const float> got, std::span<const float> expected) {
  return judge(stage, gate_of("end_to_end." + stage).in(precision), got, expected);
}

OpenOptions reference_options(const OpenOptions& options, const std::string& precision) {
  OpenOptions plain = moved_to(options, "reference");
  plain.precision = precision == "bf16" ? "bf16" : "f32";
  plain.progress = {};
  return plain;
}

Validation validate_model(const std::string& model, const OpenOptions& options,
                          const std::function<Observation(Engine&)>& observe,
                          const ModuleChoice& choice) {
  const OpenedModel opened = open_model(model, resolved(options));
  const auto tested = open_engine(opened, options);
  Engine reference = OpenedEngine::front(
      open_engine(opened, reference_options(options, tested->options.precision)));
  Validation v = validate_modules(*tested, OpenedEngine::of(reference), observe(reference), choice);
  v.model = model;
  return v;
}

nlohmann::json to_json(const Validation& v) {
  const auto known = [](const std::optional<double>& value) {
    return value ? nlohmann::json(*value) : nlohmann::json();
  };
  nlohmann::json modules = nlohmann::json::array();
  for (const ModuleCheck& c : v.checks)
    modules.push_back({{"module", c.module},
                       {"pcc", c.apart.pcc},
                       {"max_error", c.apart.max_error},
                       {"relative_l2", c.apart.relative_l2},
                       {"scale", c.apart.scale},
                       {"gate", c.gate.pcc},
                       {"relative_l2_gate", c.gate.relative_l2},
                       {"asked", c.asked},
                       {"ms", known(c.ms)},
                       {"reference_ms", known(c.reference_ms)},
                       {"failed", c.failed},
                       {"passed", c.passed()}});
  return {{"backend", v.backend},
          {"method", v.method},
          {"precision", v.precision},
          {"modules", modules},
          {"passed", v.passed()}};
}

}  // namespace tendon
