// labels: model
// The flow matching loss of the demo's policy on what the demo's table shows.
#include "validate/flow_loss.h"

#include <cmath>

#include "refusals.h"
#include "tendon/embedded.h"
#include "tendon/opened.h"
#include "tensor/random.h"
#include "test_files.h"

using namespace tendon;

namespace {

struct Loss : testing::Test {
  Engine engine = Engine::open("demo", {.precision = "f32"});
  Policy& policy = *OpenedEngine::of(engine).policy;

  // A scene and what the policy, which solves it, does there.
  Example example() {
    Example e{.observation = demo_observation()};
    e.actions = engine.infer(e.observation).values;
    return e;
  }
};

TEST_F(Loss, of_what_a_trained_policy_does_is_a_small_part_of_that_of_no_policy) {
  const Example good = example();
  const FlowLoss fits = flow_loss(policy, std::span(&good, 1), 7);
  EXPECT_TRUE(fits.fits());
  EXPECT_LT(fits.loss, .25 * fits.of_zero);
  Example turned = good;  // as by a robot whose first two axes point the other way
  for (size_t i = 0; i < turned.actions.size(); ++i)
    if (i % 3 < 2) turned.actions[i] *= -1;
  EXPECT_GT(flow_loss(policy, std::span(&turned, 1), 7).loss, 4 * fits.loss);
}

TEST_F(Loss, of_random_weights_is_that_of_no_policy) {
  Engine random = Engine::open("synthetic:pi0-small");
  Example e{.observation = *observation_for("", random, true)};
  e.actions.assign(random.action_names().size(), .1);
  const FlowLoss loss = flow_loss(*OpenedEngine::of(random).policy, std::span(&e, 1), 7);
  EXPECT_FALSE(loss.fits());
}

// From the definition, with the library's own velocity: one example, one row, no padding counted.
TEST_F(Loss, is_the_mean_square_of_velocity_minus_noise_plus_actions) {
  Example e = example();
  e.actions.resize(3);  // one row; the others repeat it and do not count
  const FlowLoss loss = flow_loss(policy, std::span(&e, 1), 3);
  ASSERT_EQ(loss.buckets.size(), 5U);
  const std::vector<float> clean = policy.to_model(e.observation, e.actions);
  const auto columns = static_cast<size_t>(engine.model_dim());
  for (size_t r = 1; r < static_cast<size_t>(engine.horizon()); ++r)
    for (size_t d = 0; d < columns; ++d) EXPECT_EQ(clean[r * columns + d], clean[d]);
  double mean = 0;
  for (const LossAt& at : loss.buckets) {
    EXPECT_NEAR(at.snr, std::pow((2 - at.t_low - at.t_high) / (at.t_low + at.t_high), 2), 1e-9);
    EXPECT_GT(at.of_zero, 0);
    mean += at.loss / 5;
  }
  EXPECT_DOUBLE_EQ(loss.loss, mean);
  // At t in the lowest bucket x is nearly the actions, so the loss of a perfect velocity would be 0
  // and that of zero |noise - actions|^2: the same draws as the library makes.
  std::vector<float> noise(clean.size());
  normal_noise(3, 0, noise);
  double of_zero = 0;
  for (size_t d = 0; d < 3; ++d) of_zero += std::pow(noise[d] - clean[d], 2) / 3;
  EXPECT_NEAR(loss.buckets[0].of_zero, of_zero, 1e-6);
  const double t = .2 * philox({{0, 0, 0, 1}}, 3).word[0] * 0x1p-32;
  std::vector<float> x(clean.size());
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>((1 - t) * clean[i] + t * noise[i]);
  const std::vector<float> v = engine.velocity(e.observation, x, t);
  double expected = 0;
  for (size_t d = 0; d < 3; ++d) expected += std::pow(v[d] - (noise[d] - clean[d]), 2) / 3;
  EXPECT_NEAR(loss.buckets[0].loss, expected, 1e-6);
}

TEST_F(Loss, is_refused_for_chunks_of_another_robot) {
  Example e = example();
  e.actions.push_back(0);
  const auto loss = [&] { flow_loss(policy, std::span(&e, 1), 1); };
  EXPECT_TRUE(refuses(Fault::input, "a chunk of 31 values, expected rows of 3", loss));
  e.actions = {1, NAN, 0};
  EXPECT_TRUE(refuses(Fault::input, "the chunk contains nan", loss));
  EXPECT_TRUE(refuses(Fault::input, "no example", [&] { flow_loss(policy, {}, 1); }));
}

}  // namespace
