// labels: model
// The whole policy on the ttnn backend: what ran where, transfers, masks, positions, noise, the
// legality of the full-size models on every grid.
#include <fmt/format.h>

#include "backends/ttnn/ttnn.h"
#include "tendon/tendon.h"
#include "test_files.h"
#include "ttnn_scene.h"
#include "validate/coverage.h"
#include "validate/modules.h"

namespace tendon {
namespace {

OpenOptions fake(const std::string& precision = "bf16") {
  return {.backend = "ttnn", .precision = precision, .device = "fake"};
}

std::string small(bool pi05) { return pi05 ? "synthetic:pi05-small" : "synthetic:pi0-small"; }

TEST(TtnnAudit, all_ops_and_flops_are_on_the_device_and_steps_move_nothing) {
  for (const bool pi05 : {false, true}) {
    const auto engine = open_engine(small(pi05), fake());
    audit_call(*engine, scene(*engine, "fold the towel"), {}, 1);
    // A longer prompt than ever before: still no mask and no table is uploaded.
    const Audit audit = audit_call(*engine, scene(*engine, "pick up the red block"), {}, 0);
    const AuditSum total = audit.total();
    EXPECT_GE(total.device_share(), 0.95);
    EXPECT_GE(total.device_flops_share(), 0.999);
    EXPECT_LE(total.ups, 6);
    EXPECT_EQ(total.downs, 1);
    EXPECT_EQ(audit.transfers_between_steps(), 0);
  }
}

TEST(TtnnAudit, a_suffix_and_prefix_on_the_host_are_found_out) {
  OpenOptions options = fake();
  options.fallback = "reference";
  options.host_modules = {"suffix", "prefix"};
  const auto engine = open_engine(small(false), options);
  const Audit audit = audit_call(*engine, scene(*engine, "fold the towel"), {}, 1);
  const AuditSum total = audit.total();
  EXPECT_GE(total.ups + total.downs, 40);
  EXPECT_GT(audit.transfers_between_steps(), 0);
  EXPECT_GT(total.host_calls, 40);
  EXPECT_LT(total.device_share(), 0.97);
}

TEST(TtnnAudit, sees_the_replay_that_the_device_runs_from_the_third_call_on) {
  const auto engine = open_engine(small(false), fake());
  const auto audit = [&] { return audit_call(*engine, scene(*engine, "fold the towel"), {}, 0); };
  const Audit plain = audit(), recorded = audit(), replay = audit();
  EXPECT_FALSE(plain.replayed());
  EXPECT_FALSE(recorded.replayed());
  EXPECT_TRUE(replay.replayed());
  EXPECT_EQ(expectation(recorded).find("copy"), std::string::npos);
  for (const OpClass c : {OpClass::linear, OpClass::attention, OpClass::norm}) {
    EXPECT_EQ(replay.of(c).calls(), recorded.of(c).calls()) << name(c);
    EXPECT_EQ(replay.of(c).flops(), recorded.of(c).flops()) << name(c);
  }
  EXPECT_EQ(replay.total().seconds, 0);
}

TEST(TtnnAudit, any_module_may_run_on_the_host) {
  for (const char* model : {"demo:pi0", "demo:pi05"}) {
    const auto reference = open_engine(model, {.backend = "reference", .precision = "bf16"});
    const Observation seen = scene(*reference, "reach for the red block");
    const std::vector<float> wanted = reference->policy->infer(seen).normalized;
    for (int m = 0; m < kModuleCount; ++m) {
      OpenOptions options = fake();
      options.fallback = "reference";
      options.host_modules = {std::string(name(static_cast<Module>(m)))};
      const auto engine = open_engine(model, options);
      const Actions got = engine->policy->infer(seen);
      EXPECT_EQ(beyond(Bounds::of_noise(.1, .4), compare(got.normalized, wanted)), "")
          << model << " " << options.host_modules[0];
    }
  }
}

TEST(TtnnAudit, a_host_module_without_a_fallback_is_refused) {
  OpenOptions options = fake();
  options.host_modules = {"suffix"};
  EXPECT_EQ(refused([&] { open_engine(small(false), options); }).fault(), Fault::usage);
}

TEST(TtnnPolicy, follows_the_reference_from_any_noise) {
  const auto tested = open_engine(small(false), fake());
  const auto reference = open_engine(small(false), {.backend = "reference", .precision = "bf16"});
  std::vector<float> last;
  for (const uint64_t seed : {3U, 4U}) {
    const auto actions = [&](const OpenedEngine& engine) {
      return engine.policy->infer(scene(engine, "fold the towel"), {.seed = seed}).normalized;
    };
    const std::vector<float> got = actions(*tested);
    EXPECT_EQ(beyond(Bounds::of_noise(.045, .2), compare(got, actions(*reference))), "");
    EXPECT_NE(got, last);
    last = got;
  }
}

// Those of one Ops are not replayed for the next, which could not tell what they did.
TEST(TtnnTraces, are_recorded_at_the_second_run_and_replayed_without_calling_the_body) {
  const auto kernels = make_ttnn_backend(tt::open_fake_device());
  for (int user = 0; user < 2; ++user) {
    Ops ops(*kernels);
    int bodies = 0;
    for (int run = 1; run <= 4; ++run) {
      SCOPED_TRACE(fmt::format("{} {}", user, run));
      const Tensor x = ops.upload(std::vector<float>(64, static_cast<float>(run)), {2, 32});
      const auto body = [&](std::span<const Tensor> in) {
        ++bodies;
        return std::vector<Tensor>{ops.add_scaled(in[0], in[0], 0.5f)};
      };
      const Tensor y = ops.graph({"twice"}, std::span(&x, 1), body)[0];
      EXPECT_EQ(ops.download(y), std::vector<float>(64, 1.5f * static_cast<float>(run)));
      EXPECT_EQ(bodies, std::min(run, 2));
      EXPECT_EQ(ops.coverage().of(Op::add_scaled).native_calls, run);
    }
  }
}

TEST(TtnnTraces, an_upload_during_capture_is_refused) {
  const auto kernels = make_ttnn_backend(tt::open_fake_device());
  Ops ops(*kernels);
  const auto body = [&](std::span<const Tensor>) {
    return std::vector<Tensor>{ops.upload(std::vector<float>(32), {1, 32})};
  };
  ops.graph({"uploads"}, {}, body);
  EXPECT_TRUE(refuses(Fault::internal, "captured", [&] { ops.graph({"uploads"}, {}, body); }));
}

TEST(TtnnTraces, give_the_bytes_of_plain_calls_whatever_changes_between_them) {
  for (const bool pi05 : {false, true}) {
    const auto traced = open_engine(small(pi05), fake());
    const auto plain = open_engine(  // replays nothing
        small(pi05), fake(), make_ttnn_backend(tt::open_fake_device({.fast_dispatch = false})));
    const auto same = [&](const std::string& prompt, const InferOptions& options) {
      const Observation o = scene(*traced, prompt);
      EXPECT_EQ(traced->policy->infer(o, options).normalized,
                plain->policy->infer(o, options).normalized)
          << prompt;
    };
    for (uint64_t seed = 0; seed < 4; ++seed) same("fold the towel", {.seed = seed});
    for (uint64_t seed = 0; seed < 3; ++seed) same("pick up the red block", {.seed = seed});
    for (uint64_t seed = 4; seed < 7; ++seed) same("fold the towel", {.seed = seed});
    for (uint64_t seed = 0; seed < 3; ++seed) same("fold the towel", {.seed = seed, .steps = 3});
    same("fold the towel", {.seed = 9});
  }
}

TEST(TtnnTraces, survive_more_prompts_than_masks_are_kept) {
  const Scratch scratch("traces");  // 16 tokens per image: attention needs a mask per segment
  const auto file = scratch.write("tokens.json", R"({"vision": {"image": 56}, "cameras": 3})");
  OpenOptions options = fake();
  options.config = file.string();
  const auto engine = open_engine(small(false), options);
  const auto infer = [&](size_t letters, uint64_t seed) {
    const Observation o = scene(*engine, std::string(letters, 'x'));
    return engine->policy->infer(o, {.seed = seed}).normalized;
  };
  const std::vector<float> first = infer(1, 0);
  infer(1, 1);
  for (size_t letters = 2; letters < 8; ++letters)
    for (uint64_t seed = 0; seed < 3; ++seed) infer(letters, seed);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(infer(1, 0), first);
}

// Zeros in every shape; large matrices have no bytes at all: only for devices of shapes.
class Blank final : public WeightSource {
 public:
  HostTensor get(const std::string& name, const Shape& shape) override {
    if (shape.count() > std::ssize(zeros_)) return {name, DType::f32, shape, {}, nullptr};
    const auto bytes =
        std::as_bytes(std::span(zeros_)).first(static_cast<size_t>(4 * shape.count()));
    return {name, DType::f32, shape, bytes, nullptr};
  }

 private:
  std::vector<float> zeros_ = std::vector<float>(1 << 23);
};

// Every op of a full-size policy's call, shapes, legality and memory only: no number is computed.
void run_shapes(PolicyType type, const tt::FakeOptions& device, const std::string& precision,
                const TtnnOptions& ttnn = {}) {
  OpenOptions options = fake(precision);
  options.max_memory = 1LL << 40;  // large weights have no bytes on the host
  OpenedModel opened = open_model(fmt::format("synthetic:{}", name(type)), options);
  opened.weights = std::make_unique<Blank>();
  const auto engine =
      open_engine(opened, options,
                  make_ttnn_backend(tt::open_fake_device(device), tt::use_of(precision, ttnn)));
  // More letters than a prompt may have tokens.
  const Observation seen = scene(*engine, std::string(1000, 'x'));
  EXPECT_EQ(std::ssize(engine->policy->infer(seen, {.steps = 2}).normalized),
            opened.config.horizon * opened.config.action_dim);
}

// What the weights take, and a seventh more for everything else.
int64_t dram_bytes(const std::string& precision) {
  return precision == "bf16" ? 7'500'000'000 : 4'500'000'000;
}

TEST(TtnnFullSize, every_call_is_legal_and_memory_holds_on_every_grid) {
  for (const auto& [x, y] : {std::pair{8, 7}, {8, 8}, {8, 9}, {11, 10}, {13, 10}})
    for (const PolicyType type : {PolicyType::pi0, PolicyType::pi05})
      for (const std::string precision : {"bf16", "bfp8"}) {
        SCOPED_TRACE(fmt::format("{}x{} {} {}", x, y, name(type), precision));
        const tt::FakeOptions device{
            .grid_x = x, .grid_y = y, .dram_bytes = dram_bytes(precision), .compute = false};
        ASSERT_NO_THROW(run_shapes(type, device, precision));
      }
}

TEST(TtnnFullSize, every_call_is_legal_wherever_results_lie) {
  for (const auto& [x, y] : {std::pair{8, 7}, {13, 10}})
    for (const PolicyType type : {PolicyType::pi0, PolicyType::pi05})
      for (const char* memory : {"dram", "l1"}) {
        SCOPED_TRACE(fmt::format("{}x{} {} {}", x, y, name(type), memory));
        const tt::FakeOptions device{.grid_x = x, .grid_y = y, .compute = false};
        ASSERT_NO_THROW(run_shapes(type, device, "bf16,expert=bfp8", {.memory = memory}));
      }
}

TEST(TtnnFullSize, a_device_with_too_little_memory_is_an_error_that_says_so) {
  EXPECT_TRUE(refuses(Fault::memory, "out of memory", [] {
    run_shapes(PolicyType::pi0, {.dram_bytes = 2LL << 30, .compute = false}, "bf16");
  }));
}

// Real widths, one or two layers of each tower, one camera.
TEST(TtnnFullSize, slow_blocks_are_within_their_gates) {
  const Scratch scratch("ttnn");
  const std::string config = R"({"vision": {"depth": 1}, "vlm": {"depth": 2},
    "expert": {"depth": 2}, "cameras": 1, "num_steps": 1})";
  const auto file = scratch.write("blocks.json", config).string();
  for (const std::string model : {"synthetic:pi0", "synthetic:pi05"})
    for (const std::string precision : {"bf16", "bfp8"}) {
      OpenOptions options = fake(precision);
      options.config = file;
      const Validation v = validate_model(model, options, [](Engine& engine) {
        return scene(OpenedEngine::of(engine), "fold the towel and put it into the basket");
      });
      for (const ModuleCheck& c : v.checks) {
        fmt::print("{} {} {:24} pcc {:.6f} max error {:.2e} relative L2 {:.2e}\n", model, precision,
                   c.module, c.apart.pcc, c.apart.max_error, c.apart.relative_l2);
        EXPECT_EQ(c.failed, "") << c.module;
      }
    }
}

}  // namespace
}  // namespace tendon
