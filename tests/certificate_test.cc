// labels: model
// A certificate: what is drawn, what is found worst, what it holds for.
#include "validate/certificate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "damaged_checkpoint.h"
#include "refusals.h"

namespace tendon {
namespace {

void check_drawn(const std::string& model, const OpenOptions& options) {
  Engine engine = Engine::open(model, options);
  const Observation one = drawn_observation(model, engine, 1);
  EXPECT_EQ(one.state, drawn_observation(model, engine, 1).state) << model;
  const Observation two = drawn_observation(model, engine, 2);
  EXPECT_NE(one.state, two.state) << model;
  EXPECT_NE(one.images.begin()->second.rgb, two.images.begin()->second.rgb) << model;
  for (const Observation& o : {one, two})
    for (const uint8_t outside : engine.infer(o).state_outside) EXPECT_EQ(outside, 0) << model;
}

TEST(DrawnObservation, lies_within_the_statistics_and_depends_on_its_seed) {
  check_drawn("demo", {});
  check_drawn("demo:pi05", {});
  check_drawn("synthetic:pi0-small", {.robot = "aloha"});
  for (const char* kind : {"lerobot-pi0", "openpi-pi05"}) {
    const Checkpoint checkpoint(kind);
    check_drawn(checkpoint.folder(), checkpoint.options);
  }
}

TEST(DrawnObservation, goes_back_through_every_transform_of_states) {
  Normalize n;
  const Transforms transforms = {AlohaJoints{}, Affine{.scale = {2, -0.5}, .offset = {0.25, 1}},
                                 Affine{.of = Affine::Of::actions, .scale = {7}, .offset = {7}},
                                 DeltaActions{}, n};
  std::vector<double> wanted(14);
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = 0.05 * static_cast<double>(i);
  const States back = state_to_model(transforms, state_to_robot(transforms, wanted));
  for (size_t i = 0; i < wanted.size(); ++i)
    EXPECT_NEAR(back[transforms.size() - 1][i], wanted[i], 1e-9) << i;
}

Certificate of_demo(const std::string& precision = "bf16") {
  static std::map<std::string, Certificate> made;
  if (!made.contains(precision))
    made[precision] = certify("demo", {.precision = precision}, {.count = 2});
  return made[precision];
}

TEST(Certificate, tells_stages_and_actions_worst_first) {
  const Certificate c = of_demo();
  EXPECT_TRUE(c.passed());
  ASSERT_EQ(c.compared.size(), 1u);
  const Compared& reference = c.compared[0];
  ASSERT_EQ(reference.stages.size(), 6u);
  for (size_t i = 1; i < reference.stages.size(); ++i)
    EXPECT_GE(reference.stages[i - 1].apart.relative_l2 / reference.stages[i - 1].gate.relative_l2,
              reference.stages[i].apart.relative_l2 / reference.stages[i].gate.relative_l2);
  ASSERT_EQ(reference.dimensions.size(), 3u);
  for (size_t i = 1; i < 3; ++i)
    EXPECT_GE(reference.dimensions[i - 1].normal_rms, reference.dimensions[i].normal_rms);
  // The largest error of a dimension is that of the chunks which the page shows.
  for (const DimensionCheck& check : reference.dimensions) {
    const auto d = static_cast<size_t>(check.name.back() - '0');
    double largest = 0;
    for (size_t o = 0; o < c.chunks.size(); ++o)
      for (size_t i = d; i < c.chunks[o].size(); i += 3)
        largest = std::max(largest, std::abs(c.chunks[o][i] - reference.chunks[o][i]));
    EXPECT_NEAR(check.apart.max_error, largest, 1e-6);
    EXPECT_GT(largest, 1e-6);
  }
  EXPECT_EQ(c.chunks.size(), 2u);
  const Certificate exact = of_demo("f32");
  EXPECT_GT(reference.dimensions[0].normal_rms, exact.compared[0].dimensions[0].normal_rms * 10);
}

TEST(Certificate, does_not_pass_with_one_bad_number) {
  Certificate c = of_demo();
  c.compared.push_back(c.compared[0]);
  DimensionCheck& last = c.compared[1].dimensions[1];
  last.normal_rms = last.normal_rms_max * 1.01;
  EXPECT_FALSE(c.passed());
  last.normal_rms = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(c.passed());
  c = of_demo();
  c.compared[0].stages[2].failed = "PCC";
  EXPECT_FALSE(c.passed());
  EXPECT_EQ(to_json(c)["passed"], false);
}

TEST(Certificate, has_a_page_with_both_chunks_of_every_action) {
  const std::string page = html_page(of_demo());
  const auto count = [&](const std::string& piece) { return count_of(page, piece); };
  EXPECT_EQ(count("<polyline class='reference'"), 3);
  EXPECT_EQ(count("<polyline class='got'"), 3);
  EXPECT_EQ(count("<polyline class='error'"), 6);
  EXPECT_EQ(count("<line class='zero'"), 3) << "of the differences alone";
  EXPECT_EQ(count("<section class='passed'>"), 3);
  EXPECT_EQ(count("http"), 0) << "it loads something";
  EXPECT_GT(count(of_demo().identity.weights), 0);
}

// The oracle is asked what the backend was, with its noise, and stands beside the reference.
TEST(Certificate, compares_with_another_implementation_in_the_same_run) {
  Engine other = Engine::open("demo", {.precision = "f32"});
  const Oracle oracle = [&](const Observation& seen, const std::vector<float>& noise, int64_t dim) {
    EXPECT_EQ(std::ssize(noise), 10 * dim);
    StagedActions said = run_stages(OpenedEngine::of(other), seen, {.noise = noise});
    said.actions.values[2] += 0.5;
    std::erase_if(said.stages, [](const auto& stage) { return stage.first != "velocity"; });
    return Answered{said.actions.values, said.stages};
  };
  const Certificate c =
      certify("demo", {}, {.count = 2, .oracle = oracle, .oracle_name = "another"});
  ASSERT_EQ(c.compared.size(), 2u);
  EXPECT_TRUE(c.compared[0].passed());
  EXPECT_FALSE(c.compared[1].passed());
  EXPECT_FALSE(c.passed());
  EXPECT_EQ(c.compared[1].dimensions[0].name, "action_2");
  EXPECT_NEAR(c.compared[1].dimensions[0].apart.max_error, 0.5, 0.05);
  ASSERT_EQ(c.compared[1].stages.size(), 1u);
  EXPECT_LT(c.compared[1].stages[0].apart.relative_l2, 0.01);
  const auto with_stage = [](const std::string& name) {
    const Oracle wrong = [=](const Observation&, const std::vector<float>&, int64_t) {
      return Answered{std::vector<double>(30), {{name, std::vector<float>(3)}}};
    };
    certify("demo", {}, {.count = 1, .oracle = wrong, .oracle_name = "another"});
  };
  EXPECT_TRUE(refuses(Fault::input, "a stage 'sigl'", [&] { with_stage("sigl"); }));
  EXPECT_TRUE(refuses(Fault::input, "3 numbers for the stage", [&] { with_stage("velocity"); }));
}

TEST(Certificate, opens_its_model_once) {
  std::vector<std::string> notes;
  const OpenOptions options{.note = [&](const std::string& note) { notes.push_back(note); }};
  Engine::open("synthetic:pi0-small", options);
  const std::vector<std::string> once = std::exchange(notes, {});
  ASSERT_FALSE(once.empty());
  certify("synthetic:pi0-small", options,
          {.count = 1, .observe = [](Engine& engine) {
             return std::vector{drawn_observation("synthetic:pi0-small", engine, 1)};
           }});
  EXPECT_EQ(notes, once);
}

TEST(Identity, changes_with_a_weight_a_statistic_and_the_tokenizer) {
  Checkpoint checkpoint("lerobot-pi0");
  const std::string folder = checkpoint.folder();
  const ModelIdentity before = identify(folder, checkpoint.options);
  EXPECT_EQ(before.backend, "cpu");
  EXPECT_EQ(before.precision, "bf16");
  EXPECT_EQ(identify(folder, checkpoint.options).weights, before.weights);

  OpenOptions other = checkpoint.options;
  other.statistics = "none";
  EXPECT_NE(identify(folder, other).statistics, before.statistics);
  EXPECT_EQ(identify(folder, other).weights, before.weights);

  other = checkpoint.options;
  other.tokenizer = checkpoint.write("other.json", read_whole(other.tokenizer) + "\n");
  EXPECT_NE(identify(folder, other).tokenizer, before.tokenizer);
  EXPECT_EQ(identify(folder, other).statistics, before.statistics);

  checkpoint.tensors(checkpoint.kWeights, [](Tensors&) {});  // as F32: the same model otherwise
  const std::string rewritten = identify(folder, checkpoint.options).weights;
  value(checkpoint.kWeights, "action_in_proj.bias", 1, 0.5f)(checkpoint);
  EXPECT_NE(identify(folder, checkpoint.options).weights, rewritten);
  EXPECT_NE(identify("synthetic:pi0-small", {}).weights,
            identify("synthetic:pi0-small", {.weights_seed = 1}).weights);
}

TEST(CheckCertificate, refuses_another_model_and_names_what_differs) {
  const Certificate c = of_demo();
  const std::string text = to_json(c).dump();
  EXPECT_TRUE(check_certificate(text, c.identity).empty());
  for (const auto& [key, member] : {std::pair("weights", &ModelIdentity::weights),
                                    std::pair("statistics", &ModelIdentity::statistics),
                                    std::pair("tokenizer", &ModelIdentity::tokenizer),
                                    std::pair("backend", &ModelIdentity::backend),
                                    std::pair("precision", &ModelIdentity::precision)}) {
    ModelIdentity now = c.identity;
    now.*member = "another";
    EXPECT_TRUE(refuses(Fault::verdict, {"'demo'", key, "another", "tendon certify"},
                        [&] { check_certificate(text, now); }));
  }
  ModelIdentity now = c.identity;
  now.processor = "another";
  const std::vector<std::string> differences = check_certificate(text, now);
  ASSERT_EQ(differences.size(), 1u);
  EXPECT_TRUE(says(differences[0], "processor"));

  auto failed = to_json(c);
  failed["passed"] = false;
  EXPECT_TRUE(
      refuses(Fault::verdict, "negative", [&] { check_certificate(failed.dump(), c.identity); }));
  for (const char* none : {"", "{}", "[1]", R"({"weights": 3})"})
    EXPECT_TRUE(
        refuses(Fault::usage, "no certificate", [&] { check_certificate(none, c.identity); }));
}

}  // namespace
}  // namespace tendon
