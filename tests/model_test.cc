// labels: model
// The formulas around the network: flow matching, guidance, its work, its sizes.
#include "model/flow_matching.h"
#include "model/pi0.h"
#include "model/weights.h"
#include "test_files.h"

using namespace tendon;

TEST(FlowMatching, the_path_leads_from_noise_to_actions_at_the_velocity_of_the_sampler) {
  const std::vector<float> actions = {0.5f, -1.f}, noise = {-0.25f, 2.f};
  EXPECT_EQ(add_noise(actions, noise, 1), noise);
  EXPECT_EQ(add_noise(actions, noise, 0), actions);
  // denoise adds dt * v with v = noise - actions and dt < 0.
  const std::vector<float> x = add_noise(actions, noise, 0.75), y = add_noise(actions, noise, 0.5);
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_FLOAT_EQ(y[i], x[i] - 0.25f * (noise[i] - actions[i]));
  EXPECT_DOUBLE_EQ(flow_alpha(0.25) + flow_sigma(0.25), 1);
  EXPECT_DOUBLE_EQ(flow_snr(0.25), 9);
  EXPECT_TRUE(std::isinf(flow_snr(0)));
  for (const double t : {-0.5, 1.5})
    EXPECT_TRUE(refuses(Fault::internal, "", [&] { add_noise(actions, noise, t); }));
  EXPECT_TRUE(refuses(Fault::internal, "", [&] { add_noise(actions, {}, 0.5); }));
}

TEST(Guidance, weights_follow_the_schedules_of_lerobot) {
  const auto w = [](GuidanceSchedule s) { return guidance_weights(s, 2, 6, 8, 8); };
  EXPECT_EQ(w(GuidanceSchedule::ones), std::vector<float>({1, 1, 1, 1, 1, 1, 0, 0}));
  EXPECT_EQ(w(GuidanceSchedule::zeros), std::vector<float>({1, 1, 0, 0, 0, 0, 0, 0}));
  // From 1 at the last executed row to 0 at the first free one.
  EXPECT_EQ(w(GuidanceSchedule::linear), std::vector<float>({1, 1, .8f, .6f, .4f, .2f, 0, 0}));
  const std::vector<float> bent = w(GuidanceSchedule::exp);
  for (size_t i = 0; i < 8; ++i) {
    const double x = i < 2 ? 1 : i < 6 ? 0.2 * (6. - static_cast<double>(i)) : 0;
    EXPECT_FLOAT_EQ(bent[i], static_cast<float>(x * (std::exp(x) - 1) / (std::exp(1.) - 1)));
  }
}

TEST(Guidance, strength_is_lerobots_and_grows_to_its_maximum_at_pure_noise) {
  // (t / tau) (t^2 + tau^2) / t^2 with tau = 1 - t.
  EXPECT_FLOAT_EQ(guidance_strength(0.5f, 10), 2);
  EXPECT_FLOAT_EQ(guidance_strength(0.25f, 10), 10.f / 3);
  EXPECT_FLOAT_EQ(guidance_strength(0.75f, 10), 10.f / 3);
  EXPECT_EQ(guidance_strength(0.75f, 3), 3);
  EXPECT_EQ(guidance_strength(1, 7), 7);
}

TEST(Flops, of_a_call_that_skips_nothing_are_those_of_its_matrices_and_of_its_attention) {
  for (const PolicyType type : {PolicyType::pi0, PolicyType::pi05}) {
    const Config c = full_size(type);
    const int64_t steps = 7, patches = c.cameras * c.vision.tokens();
    const int64_t prefix = patches + c.max_token_len, suffix = c.horizon + (c.pi05() ? 0 : 1);
    int64_t flops = 4 * c.vision.depth * patches * c.vision.tokens() * c.vision.width +
                    4 * c.vlm.depth * prefix * prefix * c.vlm.heads * c.vlm.head_dim +
                    4 * steps * c.expert.depth * suffix * (prefix + suffix) * c.expert.heads *
                        c.expert.head_dim;
    for (const Parameter& p : parameters(c)) {
      const auto has = [&](std::string_view text) { return p.name.find(text) != p.name.npos; };
      if (p.shape.rank() < 2 || p.part == Part::embedding || has("position")) continue;
      int64_t rows = p.part == Part::vlm ? prefix : patches;
      if (p.part == Part::expert) rows = steps * (has("norm") ? 1 : suffix);
      if (p.part == Part::heads) rows = steps * (has("action_") ? c.horizon : 1);
      flops += 2 * rows * p.shape.count();
    }
    EXPECT_EQ(dense_flops(c, steps), flops) << name(type);
  }
}

TEST(Configuration, has_room_for_48_prompt_tokens_in_pi0_and_for_200_in_pi05) {
  EXPECT_EQ(full_size(PolicyType::pi0).max_token_len, 48);
  EXPECT_EQ(full_size(PolicyType::pi05).max_token_len, 200);
}

TEST(Configuration, periods_of_the_time_embedding_are_positive_ordered_and_below_a_billion) {
  Config c = full_size(PolicyType::pi0);
  const auto with = [&](double low, double high) {
    c.min_period = low, c.max_period = high;
    check(c);
  };
  with(0.25, 0.25);
  with(0.25, 999999999.);
  for (const auto& [low, high] : {std::pair(0., 4.), {-1., 4.}, {4., 3.}, {4., 1e9}})
    EXPECT_TRUE(refuses(Fault::checkpoint, "", [&, from = low, to = high] { with(from, to); }));
}
