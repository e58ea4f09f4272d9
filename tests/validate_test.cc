// labels: model
// Tensors of every backend are within their gates, and no gate lets a wrong scale or offset pass.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "backends/reference/reference_kernels.h"
#include "refusals.h"
#include "tendon/embedded.h"
#include "tendon/tendon.h"
#include "validate/modules.h"

namespace tendon {
namespace {

struct Tested {
  const char *model, *backend, *precision;
};

void PrintTo(const Tested& t, std::ostream* to) {
  *to << t.model << " " << t.backend << " " << t.precision;
}

struct Modules : testing::TestWithParam<Tested> {};

TEST_P(Modules, are_within_their_gates_and_a_wrong_scale_or_offset_is_not) {
  const auto& [model, backend, precision] = GetParam();
  OpenOptions options{.backend = backend, .precision = precision};
  if (options.backend == "ttnn") options.device = "fake";
  const auto observe = [&, name = model](Engine& e) { return *observation_for(name, e, false); };
  for (const ModuleCheck& c : validate_model(model, options, observe).checks) {
    fmt::print("{:24} PCC {:.10f} relative L2 {:.2e} of {:.2g}\n", c.module, c.apart.pcc,
               c.apart.relative_l2, c.gate.relative_l2);
    SCOPED_TRACE(c.module);
    EXPECT_EQ(c.failed, "");
    std::vector<float> expected, doubled, moved;
    double squares = 0;
    for (const auto& [e, got] : c.sample) squares += double{e} * double{e};
    const double rms = std::sqrt(squares / static_cast<double>(c.sample.size()));
    for (const auto& [e, got] : c.sample) {
      expected.push_back(e);
      doubled.push_back(2 * got);
      moved.push_back(got + 0.5F * static_cast<float>(rms));
    }
    EXPECT_EQ(judge(c.module, c.gate, doubled, expected).failed, "relative L2");
    EXPECT_EQ(judge(c.module, c.gate, moved, expected).failed, "relative L2");
  }
}

std::vector<Tested> all_tested() {
  std::vector<Tested> all;
  for (const char* model : {"demo:pi0", "demo:pi05", "synthetic:pi0-small", "synthetic:pi05-small"})
    for (const auto& [backend, precision] : {std::pair{"reference", "f32"},
                                             {"cpu", "f32"},
                                             {"cpu", "bf16"},
                                             {"cpu", "int8"},
                                             {"ttnn", "bf16"},
                                             {"ttnn", "bfp8"}})
      all.push_back({model, backend, precision});
  return all;
}

const auto name_of = [](const testing::TestParamInfo<Tested>& row) {
  std::string name =
      std::string(row.param.model) + "_" + row.param.backend + "_" + row.param.precision;
  std::ranges::replace_if(
      name, [](char c) { return c == ':' || c == '-'; }, '_');
  return name;
};

INSTANTIATE_TEST_SUITE_P(backends, Modules, testing::ValuesIn(all_tested()), name_of);

// Norms begin with the reference's values and have scales near 1. The others here have no weight.
TEST(Validation, of_other_weights_fails_wherever_a_weight_decides) {
  const char* model = "synthetic:pi0-small";
  Engine tested = Engine::open(model, {.backend = "ttnn", .weights_seed = 7, .device = "fake"}),
         reference = Engine::open(model, {.backend = "reference", .precision = "bf16"});
  const Validation v = validate_modules(OpenedEngine::of(tested), OpenedEngine::of(reference),
                                        *observation_for(model, tested, false));
  EXPECT_FALSE(v.passed());
  for (const ModuleCheck& c : v.checks) {
    if (c.module.find("norm") != c.module.npos || c.module == "vlm.embed" ||
        c.module == "step.0.denoise.time" || c.module == "step.0.denoise.actions" ||
        c.module == "masks" || c.module == "denoise.noise")
      continue;
    EXPECT_EQ(c.failed, "PCC, relative L2") << c.module;
  }
}

TEST(Validation, of_all_layers_has_a_row_for_what_each_of_their_ops_made) {
  Engine front = Engine::open("synthetic:pi0-small", {.precision = "f32"});
  OpenedEngine& engine = OpenedEngine::of(front);
  const Validation v =
      validate_modules(engine, engine, *observation_for("", front, true), {.all_layers = true});
  const Config& c = engine.policy->config();
  const auto row = [&](const std::string& name) {
    EXPECT_TRUE(std::ranges::find(v.checks, name, &ModuleCheck::module) != v.checks.end()) << name;
  };
  for (int64_t l = 0; l < c.vision.depth; ++l)
    for (const char* op : {"norm1", "sdpa", "attention", "norm2", "mlp"})
      row(fmt::format("siglip.layer.{}.{}", l, op));
  for (const auto& [tower, depth] : {std::pair{"vlm", c.vlm.depth - 1},  // its last one is K and V
                                     {"step.0.expert", c.expert.depth}})
    for (int64_t l = 0; l < depth; ++l)
      for (const char* op :
           {"norm1", "q", "k", "v", "query", "key", "value", "sdpa", "attention", "norm2", "mlp"})
        row(fmt::format("{}.layer.{}.{}", tower, l, op));
  for (const char* name :
       {"siglip.projector", "step.0.denoise.actions", "prefix.language", "masks", "denoise.noise"})
    row(name);
  for (const auto& [name, asked] : {std::pair{"siglip.layer.0", .95},
                                    {"siglip.layer.1.mlp", .97},
                                    {"step.0.suffix", .95},
                                    {"vlm.layer.0.mlp", .99}}) {
    const ModuleCheck& row_of =
        *std::ranges::find(v.checks, std::string(name), &ModuleCheck::module);
    EXPECT_EQ(row_of.asked, asked) << name;
    EXPECT_GT(row_of.ms.value_or(0), 0);
    EXPECT_GT(row_of.reference_ms.value_or(0), 0);
  }
}

// ---- Faults of a backend or of weights, one at a time: which rows fail, and which do not ----

struct RotaryWithoutSine : reference::ReferenceKernels {
  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first) override {
    Qkv out = ReferenceKernels::qkv(x, w, heads, {});
    if (!first) return out;
    for (Tensor* t : {&out.q, &out.k}) {
      if (!*t) continue;
      std::vector<float> values(static_cast<size_t>(t->shape().count()));
      download(*t, values);
      for (size_t i = 0; i < values.size(); ++i) {
        const auto row = static_cast<int64_t>(i) / t->columns();
        const int64_t half = heads.width / 2, column = static_cast<int64_t>(i) % half;
        const double angle = static_cast<double>(*first + row) *
                             std::pow(10000., -static_cast<double>(column) / double(half));
        values[i] *= static_cast<float>(std::cos(angle));
      }
      *t = upload(values, t->shape());
    }
    return out;
  }
};

struct PositionsFromZero : reference::ReferenceKernels {
  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first) override {
    return ReferenceKernels::qkv(x, w, heads, first ? std::optional<int64_t>(0) : first);
  }
};

struct MasksOff : reference::ReferenceKernels {
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible) override {
    const int32_t all[] = {static_cast<int32_t>(k.rows() / visible.segments)};
    return ReferenceKernels::attention(q, k, v, heads, {all, visible.segments});
  }
};

struct StateSeesTheActions : reference::ReferenceKernels {
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible) override {
    const int32_t more[] = {visible.keys[0] + (q.rows() == 1 ? 4 : 0)};
    return ReferenceKernels::attention(q, k, v, heads, {more, visible.segments});
  }
};

struct OneLayerDoubled : reference::ReferenceKernels {
  std::shared_ptr<const PreparedWeight> prepare(const WeightParts& parts) override {
    WeightParts doubled = parts;
    if (parts.name.ends_with("language_model.layers.0.mlp.down_proj"))
      for (HostTensor& m : doubled.matrices) {
        std::vector<float> values(static_cast<size_t>(m.shape.count()));
        convert_to_f32(m, values);
        for (float& v : values) v *= 2;
        m = host_tensor(m.name, m.shape, values);
      }
    return ReferenceKernels::prepare(doubled);
  }
};

struct Control {
  const char* name;
  std::function<std::unique_ptr<Kernels>()> faulty;
  std::vector<std::string> failing, passing;  // rows, among others
};

struct NegativeControl : testing::TestWithParam<Control> {};

TEST_P(NegativeControl, fails_where_the_fault_is_and_nowhere_else) {
  const OpenOptions options{.backend = "reference", .precision = "f32"};
  const char* model = "demo:pi0";
  const auto right = open_engine(model, options),
             sound = open_engine(model, options, std::make_unique<reference::ReferenceKernels>());
  const auto wrong = open_engine(model, options, GetParam().faulty());
  const Observation observation = demo_observation();
  EXPECT_TRUE(validate_modules(*sound, *right, observation).passed());
  const Validation v = validate_modules(*wrong, *right, observation);
  const auto failed = [&](const std::string& row) {
    const auto found = std::ranges::find(v.checks, row, &ModuleCheck::module);
    EXPECT_NE(found, v.checks.end()) << row;
    return found != v.checks.end() && !found->failed.empty();
  };
  EXPECT_TRUE(failed("end_to_end.actions"));
  for (const std::string& row : GetParam().failing) EXPECT_TRUE(failed(row)) << row;
  for (const std::string& row : GetParam().passing) EXPECT_FALSE(failed(row)) << row;
}

template <class Faulty>
std::function<std::unique_ptr<Kernels>()> made() {
  return [] { return std::make_unique<Faulty>(); };
}

INSTANTIATE_TEST_SUITE_P(
    faults, NegativeControl,
    testing::Values(
        Control{"rotary_without_sine",
                made<RotaryWithoutSine>(),
                {"vlm.layer.0.query", "vlm.layer.0.key", "step.0.expert.layer.0.query"},
                {"vlm.layer.0.q", "vlm.layer.0.k", "vlm.layer.0.value", "siglip.layer.0.sdpa",
                 "masks", "denoise.noise"}},
        Control{
            "positions_from_0",
            made<PositionsFromZero>(),
            {"step.0.expert.layer.0.query", "step.0.expert.layer.0.key", "expert.layer.0.query"},
            {"vlm.layer.0.query", "step.0.expert.layer.0.value"}},
        Control{"masks_off",
                made<MasksOff>(),
                {"vlm.layer.0.sdpa", "expert.layer.0.sdpa", "step.0.expert.layer.0.sdpa", "masks"},
                {"siglip.layer.0.sdpa", "vlm.layer.0.query"}},
        Control{"state_sees_the_actions",
                made<StateSeesTheActions>(),
                {"expert.layer.0.sdpa", "masks"},
                {"step.0.expert.layer.0.sdpa", "vlm.layer.0.sdpa"}},
        Control{"one_layer_doubled",
                made<OneLayerDoubled>(),
                {"vlm.layer.0.mlp", "vlm.layer.0"},
                {"vlm.layer.0.attention", "siglip.layer.0.mlp", "step.0.expert.layer.0.mlp"}}),
    [](const auto& row) { return std::string(row.param.name); });

TEST(Validation, reports_both_gates_and_the_one_that_failed) {
  const std::vector<float> expected = {1, -2, 3}, doubled = {2, -4, 6};
  const Validation v{.checks = {judge("velocity", Bounds::of_noise(.25), doubled, expected)}};
  EXPECT_FALSE(v.passed());
  const std::string page = html_report(v, "a <b>");
  EXPECT_TRUE(says(page, {"1.0000000000", "0.9687500000", ">1<", ">0.25<", "FAILED: relative L2",
                          "a &lt;b&gt;"}));
}

TEST(Bounds, name_every_number_that_is_beyond_and_not_a_number_is) {
  const Bounds bounds{.9, .1, .2};
  EXPECT_EQ(beyond(bounds, {.pcc = .9, .max_error = .4, .relative_l2 = .1, .scale = 2}), "");
  EXPECT_EQ(beyond(bounds, {.pcc = .9, .max_error = .5, .relative_l2 = .1, .scale = 2}),
            "max error");
  EXPECT_EQ(beyond(bounds, {.pcc = .8, .relative_l2 = .2, .scale = 2}), "PCC, relative L2");
  EXPECT_EQ(beyond(bounds, compare(std::vector{NAN, 1.F}, std::vector{1.F, 2.F})),
            "PCC, relative L2, max error");
}

}  // namespace
}  // namespace tendon
