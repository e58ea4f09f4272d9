// labels: model
// The options of a ttnn device: what each changes in the calls that the device gets, that results
// do not depend on where they lie, and how wrong values are refused.
#include <fmt/format.h>

#include <map>

#include "backends/ttnn/ttnn.h"
#include "tensor/compare.h"
#include "test_files.h"
#include "ttnn_scene.h"

namespace tendon {
namespace {

// What a device was asked.
struct Asked {
  std::vector<tt::Request> calls;
  std::vector<tt::Spec> uploads;
};

class Watched final : public tt::TtApi {
 public:
  Watched(std::unique_ptr<tt::TtApi> api, Asked& asked) : api_(std::move(api)), asked_(asked) {}
  const tt::Caps& caps() const override { return api_->caps(); }
  tt::Output upload(const tt::Spec& spec, std::span<const float> values) override {
    asked_.uploads.push_back(spec);
    return api_->upload(spec, values);
  }
  void download(tt::TensorId x, std::span<float> to) override { api_->download(x, to); }
  std::vector<tt::Output> run(const tt::Request& request) override {
    asked_.calls.push_back(request);
    return api_->run(request);
  }
  void begin_trace() override { api_->begin_trace(); }
  tt::TensorId end_trace() override { return api_->end_trace(); }
  void replay_trace(tt::TensorId trace) override { api_->replay_trace(trace); }
  void release(tt::TensorId x) noexcept override { api_->release(x); }
  DeviceMemory memory() override { return api_->memory(); }

 private:
  std::unique_ptr<tt::TtApi> api_;
  Asked& asked_;
};

constexpr const char* kPrompt = "reach for the red block";

struct Ran {
  std::vector<float> actions;
  Asked asked;
  DeviceMemory memory;
};

// A policy opened with these options, on a fake device that tells what it was asked.
Ran run(const std::string& model, const std::string& precision = "bf16",
        const TtnnOptions& options = {}, const tt::FakeOptions& device = {}, bool fitting = false) {
  Ran ran;
  const auto engine = open_engine(
      model, {.backend = "ttnn", .precision = precision, .device = "fake", .ttnn = options},
      make_ttnn_backend(std::make_unique<Watched>(tt::open_fake_device(device), ran.asked),
                        tt::use_of(precision, options)));
  ran.actions = engine->policy->infer(scene(*engine, kPrompt, fitting), {.steps = 1}).normalized;
  ran.memory = *engine->kernels->device_memory();
  return ran;
}

struct TtnnOptionsOfAModel : testing::TestWithParam<std::string> {
  const std::string model = GetParam();
};

INSTANTIATE_TEST_SUITE_P(with, TtnnOptionsOfAModel,
                         testing::Values("demo", "demo:pi05", "synthetic:pi0-small",
                                         "synthetic:pi05-small"));

int64_t calls_into_l1(const Ran& ran, bool of_norms) {
  return std::ranges::count_if(ran.asked.calls, [&](const tt::Request& r) {
    const bool norm = r.call == tt::Call::layer_norm || r.call == tt::Call::rms_norm;
    return norm == of_norms && r.memory == tt::Memory::l1 && r.call != tt::Call::reshape;
  });
}

TEST_P(TtnnOptionsOfAModel, where_results_lie_changes_memory_and_no_byte_of_the_actions) {
  const Ran automatic = run(model), dram = run(model, "bf16", {.memory = "dram"}),
            l1 = run(model, "bf16", {.memory = "l1"});
  EXPECT_EQ(automatic.actions, dram.actions);
  EXPECT_EQ(automatic.actions, l1.actions);
  EXPECT_EQ(calls_into_l1(dram, true) + calls_into_l1(dram, false), 0);
  // The demos' norms are of ragged widths.
  EXPECT_EQ(calls_into_l1(automatic, true) > 0, model.starts_with("synthetic"));
  EXPECT_EQ(calls_into_l1(automatic, false), 0);
  EXPECT_GT(calls_into_l1(l1, false), 20);
  EXPECT_GT(*l1.memory.l1_peak, *dram.memory.l1_peak);
  EXPECT_EQ(l1.memory.dram_size, dram.memory.dram_size);
  EXPECT_GE(*dram.memory.dram_peak, dram.memory.dram);
  EXPECT_LE(*l1.memory.l1_peak, l1.memory.l1_size);
  EXPECT_GT(dram.memory.dram, 0);
}

TEST_P(TtnnOptionsOfAModel, fidelity_is_that_of_every_product_and_costs_accuracy) {
  const auto reference = open_engine(model, {.backend = "reference", .precision = "bf16"});
  const std::vector<float> wanted =
      reference->policy->infer(scene(*reference, kPrompt), {.steps = 1}).normalized;
  std::map<std::string, Ran> ran;
  for (const char* fidelity : {"lofi", "hifi2", "hifi4"}) {
    ran[fidelity] = run(model, "bf16", {.fidelity = fidelity});
    int64_t products = 0, others = 0;  // zeros and ones that move columns stay exact
    for (const tt::Request& r : ran[fidelity].asked.calls) {
      if (r.call != tt::Call::linear && r.call != tt::Call::attention) continue;
      const bool same = name_in(tt::kFidelities, r.compute.fidelity) == fidelity;
      ++(same ? products : others);
      EXPECT_TRUE(same || r.blocks.kind == tt::Blocks::Kind::library);
    }
    EXPECT_GT(products, 50);
    EXPECT_LT(others, products / 4);
  }
  const auto apart = [&](const char* fidelity) {
    return compare(ran[fidelity].actions, wanted).relative_l2;
  };
  EXPECT_GT(apart("lofi"), 2 * apart("hifi4"));
  EXPECT_NE(ran["hifi2"].actions, ran["hifi4"].actions);
  EXPECT_EQ(ran["hifi4"].actions, run(model).actions);
}

// Of the large weights by module, how many are bfp8.
int64_t bfp8_uploads(const Ran& ran) {
  return std::ranges::count(ran.asked.uploads, tt::Format::bfp8, &tt::Spec::format);
}

TEST_P(TtnnOptionsOfAModel, each_module_has_its_own_format) {
  const Ran all = run(model, "bfp8"), none = run(model);
  int64_t sum = 0;
  for (const char* module : {"siglip", "vlm", "expert"}) {
    const Ran one = run(model, fmt::format("bf16,{}=bfp8", module));
    EXPECT_GT(bfp8_uploads(one), 0);
    EXPECT_NE(one.actions, none.actions);
    EXPECT_LT(one.memory.dram, none.memory.dram);
    EXPECT_LT(all.memory.dram, one.memory.dram);
    sum += bfp8_uploads(one);
  }
  EXPECT_EQ(sum, bfp8_uploads(all));
  const Ran rest = run(model, "bfp8,vlm=bf16,siglip=bf16"), expert = run(model, "bf16,expert=bfp8");
  EXPECT_EQ(rest.actions, expert.actions);
  EXPECT_EQ(bfp8_uploads(none), 0);
}

TEST_P(TtnnOptionsOfAModel, a_grid_is_planned_for_and_changes_no_byte) {
  const Ran usual = run(model);
  for (const char* text : {"1x1", "8x7", "13x10"}) {
    const tt::Grid grid = tt::grid_of(text);
    const Ran ran = run(model, "bf16", {.memory = "l1"}, {.grid_x = grid.x, .grid_y = grid.y});
    EXPECT_EQ(ran.actions, usual.actions) << text;
    int64_t planned = 0;
    for (const tt::Request& r : ran.asked.calls)
      if (r.blocks.kind != tt::Blocks::Kind::library) {
        ++planned;
        EXPECT_EQ(r.blocks.grid_x, grid.x);
        EXPECT_EQ(r.blocks.grid_y, grid.y);
      }
    EXPECT_EQ(planned > 0, grid.x * grid.y > 1) << text;
  }
}

int64_t count_of(const Ran& ran, tt::Call call) {
  return std::ranges::count(ran.asked.calls, call, &tt::Request::call);
}

// Of the uploads in this format, padding included.
int64_t bytes_up(const Ran& ran, tt::Format format) {
  int64_t bytes = 0;
  for (const tt::Spec& spec : ran.asked.uploads)
    if (spec.format == format) bytes += byte_size(spec);
  return bytes;
}

// With pictures of the model's size bytes go up, else what the resizer made of them.
TEST_P(TtnnOptionsOfAModel, patches_made_on_the_device_change_no_byte_of_the_actions) {
  for (const bool fitting : {false, true}) {
    SCOPED_TRACE(fitting);
    const Ran host = run(model, "bf16", {}, {}, fitting),
              device = run(model, "bf16", {.on_device = "patches"}, {}, fitting);
    EXPECT_EQ(device.actions, host.actions);
    EXPECT_EQ(count_of(host, tt::Call::permute), 0);
    EXPECT_EQ(count_of(device, tt::Call::permute), 1);
    EXPECT_EQ(bytes_up(host, tt::Format::u8), 0);
    EXPECT_EQ(bytes_up(device, tt::Format::u8) > 0, fitting);
  }
}

TEST(TtnnOptions, every_byte_of_a_picture_is_on_the_device_what_it_is_on_the_host) {
  const auto make = [](const char* on_device) {
    const auto kernels =
        make_ttnn_backend(tt::open_fake_device(), tt::use_of("bf16", {.on_device = on_device}));
    Ops ops(*kernels);
    std::vector<float> values(3 * 32 * 32);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(i % 256) / 255.f * 2.f - 1.f;
    return ops.download(ops.patches({values, 1, 32, 16, true}));
  };
  EXPECT_EQ(make("patches"), make(""));
}

// A step's row of sines and cosines is rounded to bf16 once, on the host or on the device; angles
// in f32 move the shortest waves by 1e-4.
TEST_P(TtnnOptionsOfAModel, times_made_on_the_device_are_those_of_the_host) {
  const Ran host = run(model), device = run(model, "bf16", {.on_device = "times"});
  EXPECT_LT(compare(device.actions, host.actions).relative_l2, 2e-3);
  // One table for the model's own number of steps, one for the call's.
  EXPECT_EQ(count_of(device, tt::Call::sin), 2);
  EXPECT_EQ(count_of(device, tt::Call::cos), 2);
  EXPECT_EQ(count_of(host, tt::Call::sin), 0);
}

TEST(TtnnOptions, reach_the_device_that_is_opened) {
  const auto opened = [](const OpenOptions& o) { return open_engine("demo", o); };
  const auto engine = opened(
      {.backend = "ttnn",
       .precision = "bfp8,vlm=bf16",
       .device = "fake",
       .ttnn = {.grid = "4x2", .fidelity = "lofi", .memory = "l1", .on_device = "patches,times"}});
  EXPECT_EQ(engine->kernels->traits().method,
            "fake device, bfp8,vlm=bf16, lofi, results in L1, patches and times on the device");
  const auto facts = device_facts({.device = "fake", .ttnn = {.grid = "4x2"}});
  EXPECT_EQ(facts[3], std::pair(std::string("grid"), std::string("4x2, 8 cores")));
}

TEST(TtnnOptions, wrong_values_are_named) {
  const auto says = [](const OpenOptions& o, const std::string& words) {
    EXPECT_TRUE(refuses(Fault::usage, words, [&] { open_engine("demo", o); }));
  };
  const auto fake = [](const std::string& precision, const TtnnOptions& options) {
    return OpenOptions{
        .backend = "ttnn", .precision = precision, .device = "fake", .ttnn = options};
  };
  for (const char* grid : {"8", "8x", "x7", "0x7", "8x-1", "8x33", "8x7x1", "8 x 7"})
    says(fake("", {.grid = grid}), fmt::format("--grid {}: expected columns by rows", grid));
  says(fake("", {.fidelity = "hifi5"}), "'hifi5': there are: lofi, hifi2, hifi3, hifi4");
  says(fake("", {.memory = "sram"}), "'sram': there are: auto, l1, dram");
  says(fake("", {.on_device = "patches,noise"}), "'noise': there are: patches, times");
  says(fake("", {.device_id = 1}), "--device-id 1: the model of the device is one");
  says(fake("", {.device_id = -1}), "--device-id -1: at least 0");
  says(fake("bf16,expert", {}), "expert=bfp8");
  says(fake("bf16,experts=bfp8", {}), "nearest: 'expert'");
  says(fake("bf16,suffix=bfp8", {}), "suffix has no large weights");
  says(fake("bf16,vlm=int8", {}), "there are: bf16, bfp8");
  says({.backend = "ttnn", .device = "sim", .ttnn_sim = "x", .ttnn = {.grid = "8x7"}},
       "--device fake takes one");
  for (const auto& [options, name] :
       std::vector<std::pair<TtnnOptions, std::string>>{{{.grid = "8x7"}, "grid"},
                                                        {{.device_id = 0}, "device-id"},
                                                        {{.fidelity = "lofi"}, "fidelity"},
                                                        {{.memory = "l1"}, "memory"},
                                                        {{.on_device = "times"}, "on-device"}})
    says({.backend = "cpu", .ttnn = options},
         fmt::format("the cpu backend has no --{}: it is an option of ttnn", name));
}

}  // namespace
}  // namespace tendon
