// labels: sim
// A toy pi0 and pi0.5, stage by stage against the reference: the same network on the TTNN library
// on a simulated Wormhole.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "backends/reference/reference.h"
#include "backends/ttnn/ttnn.h"
#include "checkpoint/synthetic.h"
#include "model/pi0.h"
#include "tensor/compare.h"
#include "tensor/random.h"

namespace tendon {
namespace {

// Hardly anything is a whole tile: heads of 24 and 16 columns, 16 image tokens, 23 rows of prefix.
Config toy(PolicyType type) {
  Config c = full_size(type);
  c.vision = {.image = 56, .patch = 14, .width = 48, .heads = 2, .mlp = 56, .depth = 1};
  c.vlm = {.width = 64, .mlp = 56, .heads = 2, .kv_heads = 1, .head_dim = 16, .depth = 2};
  c.expert = {.width = 32, .mlp = 56, .heads = 2, .kv_heads = 1, .head_dim = 16, .depth = 2};
  c.vocab = 200;
  c.horizon = 8;
  c.max_token_len = 8;
  c.cameras = 1;
  return c;
}

std::vector<float> noise(const Shape& shape, uint64_t stream) {
  std::vector<float> values(static_cast<size_t>(shape.count()));
  normal_noise(stream, 0, values);
  return values;
}

struct Stage {
  std::string name;
  std::vector<float> values;
};

// A picture as the policy gives it, in [-1, 1].
std::vector<float> picture(const VisionConfig& v) {
  std::vector<float> values = noise({3 * v.image, v.image}, 1);
  for (float& x : values)
    x = std::round(std::clamp(127.5f + 40 * x, 0.f, 255.f)) / 255.f * 2.f - 1.f;
  return values;
}

std::vector<Stage> run(Kernels& kernels, PolicyType type, int64_t steps) {
  Ops ops(kernels);
  const Config c = toy(type);
  const auto weights = synthetic_weights(c.pi05(), {.dtype = DType::bf16,
                                                    .vision_depth = c.vision.depth,
                                                    .vlm_depth = c.vlm.depth,
                                                    .expert_depth = c.expert.depth,
                                                    .threads = 1});
  const Model model{c, load_weights(ops, *weights, c)};
  std::vector<Stage> stages;
  const auto note = [&](std::string name, const Tensor& x) {
    stages.push_back({std::move(name), ops.download(x)});
  };
  const auto up = [&](const Shape& shape, uint64_t stream) {
    return ops.upload(noise(shape, stream), shape);
  };
  const std::vector<float> pixels = picture(c.vision);
  const Tensor patches = ops.patches({pixels, 1, c.vision.image, c.vision.patch, true});
  note("patches", patches);
  const Tensor images = embed_images(ops, model, patches, 1);
  note("images", images);
  const Tensor language =
      embed_language(ops, model, std::vector<int32_t>{2, 5, 60, 7, 199, 11, 108});
  const Inputs one;
  const Tensor prefix = join_prefix(ops, images, language, {&one, 1});
  note("prefix", prefix);
  KvCache cache = make_cache(ops, c);
  cache.prefix = prefix.rows();
  fill_kv_cache(ops, model, prefix, cache);
  if (!c.pi05()) append_state(ops, model, up({1, c.state_dim}, 2), cache);
  const int64_t rows = cache.prefix + (c.pi05() ? 0 : 1);
  for (size_t l = 0; l < cache.layers.size(); ++l) {
    note(fmt::format("keys.{}", l), ops.slice_rows(cache.layers[l].keys, 0, rows));
    note(fmt::format("values.{}", l), ops.slice_rows(cache.layers[l].values, 0, rows));
  }
  const Schedule schedule = make_schedule(ops, model, steps, TimeSequence::lerobot);
  note("time", schedule.steps[0].time_embedding);
  Tensor x = up({c.horizon, c.action_dim}, 3);
  for (size_t k = 0; k < schedule.steps.size(); ++k) {
    const Tensor v = velocity(ops, model, cache, schedule.steps[k], x);
    note(fmt::format("velocity.{}", k), v);
    x = ops.add_scaled(x, v, schedule.dt);
  }
  note("actions", x);
  return stages;
}

void expect_stages(std::unique_ptr<tt::TtApi> device, PolicyType type, int64_t steps,
                   const std::string& precision, const TtnnOptions& options = {}) {
  const auto reference = make_reference_backend();
  const std::vector<Stage> expected = run(*reference, type, steps);
  const auto kernels = make_ttnn_backend(std::move(device), tt::use_of(precision, options));
  const std::vector<Stage> got = run(*kernels, type, steps);
  ASSERT_EQ(got.size(), expected.size());
  const Bounds bounds =  // PCC 0.995, 0.98
      precision == "bf16" ? Bounds::of_noise(.1, .2) : Bounds::of_noise(.2, .4);
  for (size_t i = 0; i < got.size(); ++i) {
    const Comparison d = compare(got[i].values, expected[i].values);
    fmt::print("{} {:12} PCC {:.6f} max error {:.2e} relative L2 {:.2e}\n", name(type), got[i].name,
               d.pcc, d.max_error, d.relative_l2);
    EXPECT_EQ(beyond(bounds, d), "") << got[i].name;
  }
}

const std::string kMixed = "bf16,expert=bfp8";
const TtnnOptions kEverything{.fidelity = "hifi2", .memory = "l1", .on_device = "patches,times"};

std::unique_ptr<tt::TtApi> simulator() {
  return tt::open_worker(tt::simulator_options(TENDON_TTNN_SIM));
}

#define SKIP_WITHOUT_SIMULATOR()                                \
  if (!std::filesystem::exists(TENDON_TTNN_SIM "/environment")) \
  GTEST_SKIP() << TENDON_TTNN_SIM " is not there; scripts/ttnn-sim makes it"

TEST(TtnnToy, follows_the_reference_on_the_fake_device) {
  for (const PolicyType type : {PolicyType::pi0, PolicyType::pi05}) {
    for (const std::string precision : {"bf16", "bfp8"})
      expect_stages(tt::open_fake_device(), type, 2, precision);
    expect_stages(tt::open_fake_device(), type, 2, kMixed, kEverything);
  }
}

TEST(TtnnToy, follows_the_reference_on_the_simulated_wormhole) {
  SKIP_WITHOUT_SIMULATOR();
  expect_stages(simulator(), PolicyType::pi0, 1, "bf16");
}

TEST(TtnnToy, slow_pi05_follows_the_reference_on_the_simulated_wormhole) {
  SKIP_WITHOUT_SIMULATOR();
  expect_stages(simulator(), PolicyType::pi05, 2, "bf16");
}

TEST(TtnnToy, slow_with_every_option_it_follows_the_reference_on_the_simulated_wormhole) {
  SKIP_WITHOUT_SIMULATOR();
  expect_stages(simulator(), PolicyType::pi0, 2, kMixed, kEverything);
}

}  // namespace
}  // namespace tendon
