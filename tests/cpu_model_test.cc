// labels: model
// What the cpu backend promises of a whole call: the same bytes whatever the threads, agreement
// between instruction sets, no allocation once it has run. And what no token sees.

#include "backends/cpu/cpu.h"
#include "checkpoint/synthetic.h"
#include "counted_new.h"
#include "model/pi0.h"
#include "tendon/tendon.h"
#include "tensor/compare.h"
#include "tensor/random.h"
#include "test_files.h"

namespace tendon {
namespace {

using heap::allocations;

Config small_config(PolicyType type) {
  Config c = full_size(type);
  c.vision = {.image = 42, .patch = 14, .width = 40, .heads = 5, .mlp = 72, .depth = 2};
  c.vlm = {.width = 72, .mlp = 136, .heads = 4, .kv_heads = 1, .head_dim = 24, .depth = 3};
  c.expert = {.width = 48, .mlp = 88, .heads = 4, .kv_heads = 1, .head_dim = 24, .depth = 3};
  c.vocab = 64;
  c.horizon = 19;
  c.num_steps = 4;
  c.max_token_len = 40;
  return c;
}

// A model on one variant of the backend, and one call of it.
struct Network {
  std::unique_ptr<Kernels> kernels;
  Ops ops;
  Model model;
  KvCache cache;
  Schedule schedule;
  Inputs in;
  Tensor noise;

  Network(PolicyType type, const CpuOptions& options)
      : kernels(make_cpu_backend(options)), ops(*kernels) {
    const Config c = small_config(type);
    const auto weights =
        synthetic_weights(c.pi05(), {.vision_depth = 2, .vlm_depth = 3, .expert_depth = 3});
    model = {c, load_weights(ops, *weights, c)};
    cache = make_cache(ops, c);
    schedule = make_schedule(ops, model, c.num_steps, TimeSequence::lerobot);
    in.images = 3;
    in.patches = values({3 * c.vision.tokens(), c.vision.patch_values()}, 1);
    for (int32_t i = 0; i < 33; ++i) in.prompt.push_back(2 + i);
    if (!c.pi05()) in.state = values({1, c.state_dim}, 2);
    noise = values({c.horizon, c.action_dim}, 3);
  }

  Tensor values(const Shape& shape, uint64_t seed) {
    std::vector<float> v(static_cast<size_t>(shape.count()));
    normal_noise(seed, 0, v);
    return ops.upload(v, shape);
  }

  Tensor call() {
    const Tensor images = embed_images(ops, model, in.patches, in.images);
    const Tensor language = embed_language(ops, model, in.prompt);
    cache.prefix = images.rows() + language.rows();
    fill_kv_cache(ops, model, join_prefix(ops, images, language, {&in, 1}), cache);
    if (in.state) append_state(ops, model, in.state, cache);
    return denoise(ops, model, cache, schedule, {noise});
  }
  std::vector<float> actions() { return ops.download(call()); }

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

TEST(Network, the_state_token_does_not_see_the_actions_nor_the_prefix_the_state) {
  Network network(PolicyType::pi0, {.precision = Precision::f32});
  network.call();
  const int64_t state = network.cache.prefix;
  const std::vector<float> before = network.cached(0, state + 1), prefix = network.cached(0, state);
  network.noise = network.values(network.noise.shape(), 5);
  network.call();
  EXPECT_EQ(network.cached(0, state + 1), before);
  network.in.state = network.values(network.in.state.shape(), 6);
  network.call();
  EXPECT_EQ(network.cached(0, state), prefix);
  EXPECT_NE(network.cached(0, state + 1), before);
}

struct CpuModel : testing::TestWithParam<PolicyType> {};

TEST_P(CpuModel, gives_the_same_bytes_on_any_number_of_threads_and_again) {
  for (const std::string& isa : cpu_isas())
    for (const Precision p : {Precision::f32, Precision::bf16, Precision::int8}) {
      Network one(GetParam(), {.threads = 1, .precision = p, .isa = isa});
      const std::vector<float> expected = one.actions();
      EXPECT_EQ(one.actions(), expected) << isa;
      for (const int threads : {2, 3, 4})
        EXPECT_EQ(Network(GetParam(), {.threads = threads, .precision = p, .isa = isa}).actions(),
                  expected)
            << isa << " " << name(p) << " " << threads << " threads";
    }
}

TEST_P(CpuModel, instruction_sets_agree) {
  const std::pair<Precision, double> bounds[] = {
      {Precision::f32, 1e-5}, {Precision::bf16, 2e-2}, {Precision::int8, 4e-2}};
  for (const auto& [precision, bound] : bounds) {
    const std::vector<float> expected =
        Network(GetParam(), {.precision = precision, .isa = "plain"}).actions();
    for (const std::string& isa : cpu_isas()) {
      const Comparison d =
          compare(Network(GetParam(), {.precision = precision, .isa = isa}).actions(), expected);
      EXPECT_LE(d.relative_l2, bound) << isa << " " << name(precision);
    }
  }
}

TEST_P(CpuModel, does_not_allocate_after_the_first_call) {
  for (const Precision p : {Precision::f32, Precision::bf16, Precision::int8}) {
    Network network(GetParam(), {.threads = 2, .precision = p});
    network.call();
    const int64_t before = allocations;
    network.call();
    EXPECT_EQ(allocations - before, 0) << name(p);
  }
}

// As a robot sends it: every picture has to be resized and padded.
Observation scene(const Engine& engine) {
  Observation o{.prompt = "reach the red block"};
  o.state.assign(static_cast<size_t>(engine.state_dim()), 0.1);
  for (const std::string& camera : engine.cameras())
    o.images[camera] = {90, 120, std::vector<uint8_t>(3 * 90 * 120, 77)};
  return o;
}

// What is left is one list of tensors each from vision, prefill and denoising, and the vectors of
// the answer: two, and three more where the statistics have quantiles.
TEST(CpuEngine, settles_after_the_first_call) {
  const Scratch scratch("settled");
  const std::string pillow = scratch.write("pillow.json", R"({"robot": {"resize": "openpi"}})");
  const std::tuple<const char*, std::string, int64_t> models[] = {
      {"demo", "", 8},
      {"demo:pi05", "", 8},
      {"synthetic:pi0-small", "", 5},
      {"synthetic:pi0-small", pillow, 5}};
  const auto threads = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/task"), {});
  };
  for (const auto& [model, config, most] : models) {
    SCOPED_TRACE(model + config);
    Engine engine = Engine::open(model, {.config = config, .threads = 2});
    const Observation observation = scene(engine);
    engine.infer(observation);
    int64_t before = allocations;
    engine.infer(observation);
    const int64_t second = allocations - before;
    EXPECT_LE(second, most);
    const auto running = threads();
    before = allocations;
    engine.infer(observation);
    EXPECT_EQ(allocations - before, second);
    EXPECT_EQ(threads(), running);
  }
}

std::string policy_name(const testing::TestParamInfo<PolicyType>& p) {
  return std::string(name(p.param));
}

INSTANTIATE_TEST_SUITE_P(both, CpuModel, testing::Values(PolicyType::pi0, PolicyType::pi05),
                         policy_name);

}  // namespace
}  // namespace tendon
