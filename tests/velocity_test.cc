// labels: model
// The network's one forward pass through the public library: infer() is Euler steps along it.
#include <cmath>
#include <limits>

#include "tendon/embedded.h"
#include "tendon/tendon.h"
#include "test_files.h"

using namespace tendon;

namespace {

struct Velocity : testing::TestWithParam<std::tuple<const char*, const char*>> {
  Velocity() {
    for (int64_t i = 0; i < engine.horizon() * engine.model_dim(); ++i)
      noise.push_back(std::sin(static_cast<float>(i)));
  }
  std::vector<float> actions(int64_t steps) {
    return engine.infer(scene, {.noise = noise, .steps = steps}).normalized;
  }
  // x - dt v(x, t)
  std::vector<float> stepped(std::vector<float> x, double t, float dt) {
    const std::vector<float> v = engine.velocity(scene, x, t);
    for (size_t i = 0; i < x.size(); ++i) x[i] += -dt * v[i];
    return x;
  }

  Engine engine = Engine::open(std::get<0>(GetParam()),
                               {.backend = std::get<1>(GetParam()), .precision = "f32"});
  const Observation scene = *observation_for("", engine, true);
  std::vector<float> noise;
};

TEST_P(Velocity, at_the_times_of_the_euler_steps_leads_to_the_actions) {
  EXPECT_EQ(stepped(noise, 1, 1), actions(1));
  EXPECT_EQ(stepped(stepped(noise, 1, .5f), .5, .5f), actions(2));
  std::vector<float> x = noise;
  for (const double t : {1., .75, .5, .25}) x = stepped(x, t, .25f);
  EXPECT_EQ(x, actions(4));
}

TEST_P(Velocity, is_there_at_any_time_between_and_leaves_later_calls_alone) {
  const std::vector<float> before = actions(2);
  std::vector<float> last;
  for (const double t : {0., .01, .1, .3337, 1.}) {
    const std::vector<float> v = engine.velocity(scene, noise, t);
    EXPECT_EQ(v.size(), noise.size());
    EXPECT_NE(v, last) << t;
    last = v;
  }
  EXPECT_EQ(actions(2), before);
}

TEST_P(Velocity, of_wrong_sizes_numbers_and_times_is_refused) {
  const auto refused_with = [&](const std::vector<float>& x, double t, const char* words) {
    return refuses(Fault::input, words, [&] { engine.velocity(scene, x, t); });
  };
  const std::vector<float> few(noise.begin() + 1, noise.end());
  EXPECT_TRUE(refused_with(few, 1, "the noisy actions have"));
  std::vector<float> odd = noise;
  odd[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(refused_with(odd, 1, "contain nan"));
  for (const double t : {-0.01, 1.01, std::nan("")})
    EXPECT_TRUE(refused_with(noise, t, "expected 0 (actions) to 1 (noise)"));
}

INSTANTIATE_TEST_SUITE_P(policies, Velocity,
                         testing::Combine(testing::Values("demo:pi0", "demo:pi05"),
                                          testing::Values("cpu", "reference")));

}  // namespace
