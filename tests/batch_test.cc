// labels: model
// Several rows in one call: each as a call of its own would give it.
#include <cmath>

#include "backends/reference/reference_kernels.h"
#include "refusals.h"
#include "tendon/embedded.h"
#include "tendon/opened.h"
#include "tendon/tendon.h"
#include "tensor/compare.h"
#include "test_files.h"

using namespace tendon;

namespace {

struct Case {
  const char *model, *backend, *precision;
  double relative_l2 = 0;  // 0: the same bytes
};

// Without it, GoogleTest prints the bytes of the pointers, which no two runs have in common.
void PrintTo(const Case& c, std::ostream* os) {
  *os << c.model << " " << c.backend << " " << c.precision;
}

struct Batch : testing::TestWithParam<Case> {
  Batch() {
    one_camera.images = {*all_cameras.images.begin()};
    one_camera.prompt = "a longer instruction: fold the towel, and put it away";
    one_camera.state[0] = -0.7;
  }

  // The largest relative distance of a row from a call of its own; 0: the same bytes.
  void expect_rows_of_their_own(std::span<const BatchRow> rows) {
    std::vector<Actions> single;
    for (const BatchRow& row : rows) single.push_back(engine.infer(*row.observation, row.options));
    const std::vector<Actions> batch = engine.infer_batch(rows);
    ASSERT_EQ(batch.size(), rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      SCOPED_TRACE(r);
      EXPECT_EQ(batch[r].warnings, single[r].warnings);
      EXPECT_EQ(batch[r].low, single[r].low);
      if (GetParam().relative_l2 > 0) {
        EXPECT_LT(compare(batch[r].normalized, single[r].normalized).relative_l2,
                  GetParam().relative_l2);
      } else {
        EXPECT_EQ(batch[r].normalized, single[r].normalized);
        EXPECT_EQ(batch[r].values, single[r].values);
      }
    }
    EXPECT_EQ(engine.infer(*rows[0].observation, rows[0].options).normalized, single[0].normalized)
        << "a call after the batch";
  }

  Engine engine = Engine::open(GetParam().model,
                               {.backend = GetParam().backend,
                                .precision = GetParam().precision,
                                .device = std::string(GetParam().backend) == "ttnn" ? "fake" : ""});
  const Observation all_cameras = *observation_for("", engine, true);
  Observation one_camera = all_cameras;
};

TEST_P(Batch, of_different_cameras_prompts_states_and_seeds) {
  const BatchRow rows[] = {{&all_cameras, {.seed = 1}},
                           {&one_camera, {.seed = 2}},
                           {&all_cameras, {.seed = 3}},
                           {&one_camera, {.seed = 2}}};
  expect_rows_of_their_own(rows);
}

TEST_P(Batch, of_different_steps_and_previous_chunks) {
  const Actions before = engine.infer(all_cameras);
  PreviousChunk previous{
      .normalized = before.normalized, .rows = before.horizon, .dim = before.model_dim, .delay = 1};
  PreviousChunk stronger = previous;
  stronger.max_weight = 3;
  const BatchRow rows[] = {{&one_camera, {.previous = previous}},
                           {&all_cameras, {.steps = 2}},
                           {&all_cameras, {.previous = stronger}},
                           {&one_camera, {.sequence = TimeSequence::openpi}},
                           {&all_cameras, {.seed = 4, .previous = previous}}};
  expect_rows_of_their_own(rows);
}

INSTANTIATE_TEST_SUITE_P(
    backends, Batch,
    testing::Values(Case{"demo", "cpu", "f32"}, Case{"demo:pi05", "cpu", "bf16"},
                    Case{"demo", "cpu", "int8"}, Case{"demo:pi05", "reference", "f32"},
                    Case{"synthetic:pi0-small", "cpu", "bf16"},
                    Case{"synthetic:pi05-small", "cpu", "int8"}, Case{"demo", "ttnn", "bf16", 1e-2},
                    Case{"demo:pi05", "ttnn", "bf16", 1e-2}));

TEST(BatchRows, beyond_a_prefix_cost_their_denoising_alone) {
  Engine engine = Engine::open("demo");
  const Observation scene = demo_observation();
  const StageWork one = engine.infer(scene).work;
  const BatchRow rows[] = {{&scene, {.seed = 1}}, {&scene, {.seed = 2}}, {&scene, {.seed = 3}}};
  const StageWork three = engine.infer_batch(rows)[2].work;
  EXPECT_EQ(three.vision_flops, one.vision_flops);
  EXPECT_EQ(three.prefill_flops, one.prefill_flops);
  EXPECT_EQ(three.denoise_flops, 3 * one.denoise_flops);
  EXPECT_EQ(three.prefix_tokens, one.prefix_tokens);
}

TEST(BatchRows, have_the_same_bytes_with_every_instruction_set) {
  const Observation scene = demo_observation();
  for (const std::string& isa : isas())
    for (const char* precision : {"f32", "bf16", "int8"}) try {
        SCOPED_TRACE(isa + " " + precision);
        Engine engine = Engine::open("demo", {.precision = precision, .isa = isa});
        const BatchRow rows[] = {{&scene, {.seed = 1}}, {&scene, {.seed = 2}}, {&scene, {}}};
        const std::vector<Actions> batch = engine.infer_batch(rows);
        for (size_t r = 0; r < 3; ++r)
          EXPECT_EQ(batch[r].values, engine.infer(scene, rows[r].options).values);
      } catch (const Error& e) {
        EXPECT_EQ(e.fault(), Fault::usage) << e.what();  // does not carry this precision
      }
}

// Masks that a batch leaves on a device would lie where a recording has its intermediates.
TEST(BatchRows, are_not_recorded_and_forget_what_was) {
  struct Recording : reference::ReferenceKernels {
    std::vector<std::string>& told;
    explicit Recording(std::vector<std::string>& to) : told(to) { traits_.records = true; }
    Replayed graph(const GraphKey& key, std::span<const Tensor> inputs, const Body& body) override {
      told.emplace_back(key.graph);
      return ReferenceKernels::graph(key, inputs, body);
    }
    void forget_graphs() override { told.emplace_back("forgotten"); }
  };
  std::vector<std::string> told;
  const auto engine =
      open_engine("demo", {.backend = "reference"}, std::make_unique<Recording>(told));
  const Observation scene = demo_observation(), other = scene;
  const std::vector<std::string> recorded = {"vision", "prefill", "denoise"};
  engine->policy->infer(scene);
  EXPECT_EQ(told, recorded);
  for (const Observation* second : {&scene, &other}) {
    told.clear();
    const BatchRow rows[] = {{&scene, {}}, {second, {}}};
    engine->policy->infer_batch(rows);
    EXPECT_EQ(told, std::vector<std::string>{"forgotten"});
  }
}

TEST(BatchRows, are_refused_by_their_number) {
  Engine engine = Engine::open("demo");
  const Observation good = demo_observation();
  Observation bad = good;
  bad.state.pop_back();
  const auto expect = [&](const std::vector<BatchRow>& rows, const char* words) {
    EXPECT_TRUE(refuses(Fault::input, words, [&] { engine.infer_batch(rows); }));
  };
  expect({{&good, {}}, {&bad, {}}}, "row 1: the state has");
  expect({{&good, {}}, {&good, {.steps = 0}}}, "row 1: 0 denoising steps");
  expect({{&good, {}}, {}}, "row 1: no observation");
  expect({{&bad, {}}}, "the state has");
  expect({}, "a batch of 0 rows, expected 1 to 64");
  expect(std::vector<BatchRow>(65, {&good, {}}), "a batch of 65 rows, expected 1 to 64");
}

}  // namespace
