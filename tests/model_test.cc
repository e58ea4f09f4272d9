// labels: model
// Facts about the network that hold for any weights, on a small synthetic model.
#include "backends/reference/reference.h"
#include "checkpoint/synthetic.h"
#include "model/flow_matching.h"
#include "model/pi0.h"
#include "model/weights.h"
#include "tensor/random.h"
#include "test_files.h"

using namespace tendon;

namespace {

Config small_config(PolicyType type) {
  Config c = full_size(type);
  c.vision = {.image = 28, .patch = 14, .width = 16, .heads = 2, .mlp = 24, .depth = 2};
  c.vlm = {.width = 24, .mlp = 40, .heads = 2, .kv_heads = 1, .head_dim = 8, .depth = 3};
  c.expert = {.width = 16, .mlp = 24, .heads = 2, .kv_heads = 1, .head_dim = 8, .depth = 3};
  c.vocab = 64;
  c.action_dim = 6;
  c.state_dim = 5;
  c.horizon = 4;
  c.num_steps = 3;
  c.max_token_len = 16;
  return c;
}

struct Network : testing::Test {
  std::unique_ptr<Kernels> kernels = make_reference_backend();
  Ops ops{*kernels};
  Model model;
  KvCache cache;

  void load(PolicyType type, std::unique_ptr<WeightSource> weights = {}) {
    const Config c = small_config(type);
    if (!weights)
      weights = synthetic_weights(c.pi05(), {.vision_depth = 2, .vlm_depth = 3, .expert_depth = 3});
    model = {c, load_weights(ops, *weights, c)};
    cache = make_cache(ops, c);
  }

  Tensor values(const Shape& shape, uint64_t seed) {
    std::vector<float> v(static_cast<size_t>(shape.count()));
    normal_noise(seed, 0, v);
    return ops.upload(v, shape);
  }

  Inputs inputs(uint64_t state_seed = 3) {
    const VisionConfig& v = model.config.vision;
    Inputs in{.patches = values({2 * v.tokens(), v.patch_values()}, 1),
              .images = 2,
              .prompt = {2, 7, 9, 11}};
    if (!model.config.pi05()) in.state = values({1, model.config.state_dim}, state_seed);
    return in;
  }

  void read(const Inputs& in) { read_prefix(ops, model, {&in, 1}, cache); }

  // Keys and values of the rows [first, last) of every layer.
  std::vector<float> cached(int64_t first, int64_t last) {
    std::vector<float> all;
    for (const LayerKv& layer : cache.layers)
      for (const Tensor& t : {layer.keys, layer.values}) {
        const std::vector<float> rows = ops.download(ops.slice_rows(t, first, last));
        all.insert(all.end(), rows.begin(), rows.end());
      }
    return all;
  }
};

// All weights as they are, but action_out_proj zero: the velocity is 0 everywhere.
class NoVelocity final : public WeightSource {
 public:
  HostTensor get(const std::string& name, const Shape& shape) override {
    if (!name.starts_with("action_out_proj.")) return inner_->get(name, shape);
    return host_tensor(name, shape, std::vector<float>(static_cast<size_t>(shape.count())));
  }
  std::string description() const override { return "no velocity"; }

 private:
  std::unique_ptr<WeightSource> inner_ =
      synthetic_weights(false, {.vision_depth = 2, .vlm_depth = 3, .expert_depth = 3});
};

}  // namespace

TEST_F(Network, the_state_token_does_not_see_the_actions) {
  load(PolicyType::pi0);
  read(inputs());
  const int64_t state_row = cache.prefix;
  const Schedule schedule = make_schedule(ops, model, 3, TimeSequence::lerobot);
  const std::vector<float> before = cached(0, state_row + 1);
  const Shape shape{4, 6};
  for (const uint64_t seed : {5u, 6u}) {
    denoise(ops, model, cache, schedule, {values(shape, seed)});
    EXPECT_EQ(cached(0, state_row + 1), before);
  }
}

TEST_F(Network, the_state_does_not_alter_keys_and_values_of_the_prefix) {
  load(PolicyType::pi0);
  read(inputs(3));
  const int64_t prefix = cache.prefix;
  const std::vector<float> first = cached(0, prefix), state = cached(prefix, prefix + 1);
  read(inputs(4));
  EXPECT_EQ(cached(0, prefix), first);
  EXPECT_NE(cached(prefix, prefix + 1), state);
}

TEST_F(Network, what_an_earlier_call_left_in_the_cache_does_not_matter) {
  load(PolicyType::pi0);
  const Schedule schedule = make_schedule(ops, model, 3, TimeSequence::lerobot);
  const auto actions = [&] {
    read(inputs());
    return ops.download(denoise(ops, model, cache, schedule, {values({4, 6}, 5)}));
  };
  const std::vector<float> fresh = actions();
  Inputs longer = inputs(8);
  longer.prompt = {2, 1, 3, 4, 5, 6, 7, 8, 9, 10};
  read(longer);
  denoise(ops, model, cache, schedule, {values({4, 6}, 9)});
  EXPECT_EQ(actions(), fresh);
}

TEST_F(Network, a_velocity_of_zero_gives_the_noise_back) {
  load(PolicyType::pi0, std::make_unique<NoVelocity>());
  read(inputs());
  const Tensor noise = values({4, 6}, 5);
  const Schedule schedule = make_schedule(ops, model, 3, TimeSequence::lerobot);
  EXPECT_EQ(ops.download(denoise(ops, model, cache, schedule, {noise})), ops.download(noise));
}

TEST_F(Network, one_step_is_the_noise_minus_the_first_velocity) {
  for (const PolicyType type : {PolicyType::pi0, PolicyType::pi05}) {
    load(type);
    read(inputs());
    const Schedule schedule = make_schedule(ops, model, 1, TimeSequence::lerobot);
    const Tensor noise = values({4, 6}, 5);
    const std::vector<float> x = ops.download(noise);
    const std::vector<float> v =
        ops.download(velocity(ops, model, cache, schedule.steps.front(), noise));
    const std::vector<float> got = ops.download(denoise(ops, model, cache, schedule, {noise}));
    for (size_t i = 0; i < x.size(); ++i) EXPECT_FLOAT_EQ(got[i], x[i] - v[i]);
  }
}

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

TEST_F(Network, guidance_weights_follow_the_schedules_of_lerobot) {
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
    const Config c = small_config(type);
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
  Config c = small_config(PolicyType::pi0);
  const auto with = [&](double low, double high) {
    c.min_period = low, c.max_period = high;
    check(c);
  };
  with(0.25, 0.25);
  with(0.25, 999999999.);
  for (const auto& [low, high] : {std::pair(0., 4.), {-1., 4.}, {4., 3.}, {4., 1e9}})
    EXPECT_EQ(refused([&, from = low, to = high] { with(from, to); }).fault(), Fault::checkpoint);
}
