// labels: model
// Tensors of every backend are within their gates, and no gate lets a wrong scale or offset pass.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "refusals.h"
#include "tendon/embedded.h"
#include "tendon/tendon.h"
#include "validate/modules.h"

namespace tendon {
namespace {

struct Tested {
  const char *model, *backend, *precision;
};

Observation observation_of(const std::string& model) {
  if (model.starts_with("demo")) return demo_observation();
  Observation o = aloha_observation();
  const Image picture = o.images.begin()->second;
  o.images.clear();
  for (const char* name : {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"})
    o.images[name] = picture;
  o.prompt = "fold the towel";
  o.state.resize(32, 0.0);
  return o;
}

Validation validation_of(const Tested& t, uint64_t seed = OpenOptions().weights_seed) {
  OpenOptions options{.backend = t.backend, .precision = t.precision};
  if (options.backend == "ttnn") options.device = "fake";
  options.weights_seed = seed;
  const OpenOptions plain{.backend = "reference",
                          .precision = options.precision == "bf16" ? "bf16" : "f32"};
  const auto tested = open_engine(t.model, options), reference = open_engine(t.model, plain);
  return validate_modules(*tested, *reference, observation_of(t.model));
}

void PrintTo(const Tested& t, std::ostream* to) {
  *to << t.model << " " << t.backend << " " << t.precision;
}

struct Modules : testing::TestWithParam<Tested> {};

TEST_P(Modules, are_within_their_gates_and_a_wrong_scale_or_offset_is_not) {
  for (const ModuleCheck& c : validation_of(GetParam()).checks) {
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
  const Validation v = validation_of({"synthetic:pi0-small", "ttnn", "bf16"}, 7);
  EXPECT_FALSE(v.passed());
  for (const ModuleCheck& c : v.checks) {
    if (c.module.find("norm") != c.module.npos || c.module == "vlm.embed" ||
        c.module == "step.0.denoise.time" || c.module == "step.0.denoise.actions")
      continue;
    EXPECT_EQ(c.failed, "PCC, relative L2") << c.module;
  }
}

TEST(Validation, of_all_layers_has_a_row_for_what_each_of_their_ops_made) {
  const auto engine = open_engine("synthetic:pi0-small", {.precision = "f32"});
  const Validation v = validate_modules(*engine, *engine, observation_of("synthetic:pi0-small"),
                                        {.all_layers = true});
  const Config& c = engine->policy->config();
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
  for (const char* name : {"siglip.projector", "step.0.denoise.actions", "prefix.language"})
    row(name);
}

TEST(Validation, reports_both_gates_and_the_one_that_failed) {
  const std::vector<float> expected = {1, -2, 3}, doubled = {2, -4, 6};
  const Validation v{.checks = {judge("velocity", Bounds::of_noise(.25), doubled, expected)}};
  EXPECT_FALSE(v.passed());
  const std::string page = html_report(v, "");
  EXPECT_TRUE(says(page, {"1.0000000000", "0.9687500000", ">1<", ">0.25<", "FAILED: relative L2"}));
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
