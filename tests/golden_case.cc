// golden_case DIR: runs every stage of a golden folder (format: tools/make_goldens/README.md) on a
// backend and prints how far each is from the stored values. Exit 1 beyond tolerance.
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <map>
#include <regex>
#include <set>

#include "backends/cuda/cuda.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/synthetic.h"
#include "golden_bounds.h"
#include "model/config.h"
#include "model/pi0.h"
#include "policy/images.h"
#include "tendon/opened.h"
#include "tensor/check.h"
#include "tensor/compare.h"
#include "test_files.h"

using namespace tendon;
namespace fs = std::filesystem;

namespace {

struct Options : OpenOptions {
  std::string folder;
  bool actions_only = false;

  std::unique_ptr<Kernels> open() const {
#ifdef TENDON_CUBLASLT
    if (backend == "cuda")
      return make_cuda_backend(
          {.precision = precision == "f32" ? CudaPrecision::f32 : CudaPrecision::bf16,
           .blas_library = TENDON_CUBLASLT});
#endif
    return open_backend(resolved(*this));
  }
};

struct Case {
  explicit Case(const Options& options) : folder(options.folder), kernels(options.open()) {}

  fs::path folder;
  nlohmann::json json;
  Config config;
  bool full_size = false;
  std::shared_ptr<const SafetensorsFile> inputs, stages;
  std::unique_ptr<Kernels> kernels;
  Ops ops{*kernels};
  Model model;
  KvCache cache;
};

// Row `b` of an input, as float.
std::vector<float> input(const Case& c, const std::string& name, int64_t b) {
  const HostTensor* t = c.inputs->find(name);
  ensure(t, Fault::checkpoint, "{}/inputs.safetensors has no {}", c.folder.string(), name);
  return floats(t->rows(b, b + 1));
}

std::unique_ptr<WeightSource> weights_of(const Case& c) {
  const nlohmann::json& w = c.json.at("weights");
  if (w.contains("file"))
    return open_weights({SafetensorsFile::open(c.folder / w.at("file").get<std::string>())});
  SyntheticOptions options;
  options.seed = w.at("seed").get<uint64_t>();
  options.round_bf16 = w.at("round") == "bf16";
  options.vision_depth = c.config.vision.depth;
  options.vlm_depth = c.config.vlm.depth;
  options.expert_depth = c.config.expert.depth;
  return synthetic_weights(c.config.pi05(), options);
}

// Pixels [side, side, 3] in [-1, 1] of one camera.
std::vector<float> pixels(const Case& c, int64_t b, int64_t camera) {
  const std::string name = fmt::format("image.{}", camera);
  std::vector<float> in = input(c, name, b);
  const size_t plane = static_cast<size_t>(c.config.vision.image * c.config.vision.image);
  if (c.inputs->find(name)->dtype == DType::u8) {  // NHWC
    for (float& v : in) v = v / 255.f * 2.f - 1.f;
    return in;
  }
  std::vector<float> hwc(in.size());  // from NCHW
  for (size_t i = 0; i < plane; ++i)
    for (size_t ch = 0; ch < 3; ++ch) hwc[3 * i + ch] = in[ch * plane + i];
  return hwc;
}

struct Prepared {
  Inputs inputs;
  std::vector<int64_t> cameras;  // those present
};

Prepared prepare(Case& c, int64_t b, const std::vector<float>& image_mask) {
  Prepared p;
  std::vector<float> all;
  const VisionConfig& v = c.config.vision;
  for (int64_t camera = 0; camera < std::ssize(image_mask); ++camera) {
    if (image_mask[static_cast<size_t>(camera)] == 0.f) continue;
    const std::vector<float> image = pixels(c, b, camera);  // [side, side, 3]
    const PatchLayout layout{static_cast<int>(v.image), static_cast<int>(v.patch)};
    in_patch_order(layout, [&](int row, int column, int channel) {
      all.push_back(image[static_cast<size_t>(3 * (row * layout.side + column) + channel)]);
    });
    p.cameras.push_back(camera);
  }
  p.inputs.images = std::ssize(p.cameras);
  if (p.inputs.images > 0)
    p.inputs.patches = c.ops.upload(all, {p.inputs.images * v.tokens(), v.patch_values()});
  const std::vector<float> tokens = input(c, "tokens", b), mask = input(c, "token_mask", b);
  for (size_t i = 0; i < tokens.size(); ++i)
    if (mask[i] != 0.f) p.inputs.prompt.push_back(static_cast<int32_t>(tokens[i]));
  if (!c.config.pi05())
    p.inputs.state = c.ops.upload(input(c, "state", b), {1, c.config.state_dim});
  return p;
}

// How strongly the leftover of the previous chunk pulls at each row.
Rows guidance_rows(const Case& c) {
  const nlohmann::json& rtc = c.json.at("rtc");
  const std::map<std::string, GuidanceSchedule> schedules = {{"ZEROS", GuidanceSchedule::zeros},
                                                             {"ONES", GuidanceSchedule::ones},
                                                             {"LINEAR", GuidanceSchedule::linear},
                                                             {"EXP", GuidanceSchedule::exp}};
  return guidance_weights(schedules.at(rtc.at("schedule").get<std::string>()),
                          rtc.at("inference_delay").get<int64_t>(),
                          rtc.at("execution_horizon").get<int64_t>(),
                          c.inputs->find("rtc.leftover")->shape[1], c.config.horizon);
}

std::optional<Guidance> guidance_of(Case& c) {
  if (!c.json.contains("rtc")) return {};
  const HostTensor& left = *c.inputs->find("rtc.leftover");
  const int64_t rows = left.shape[1], columns = left.shape[2];
  const Shape shape{c.config.horizon, c.config.action_dim};
  const Rows w = guidance_rows(c);
  const std::vector<float> values = floats(left);
  std::vector<float> leftover(static_cast<size_t>(shape.count())), weights(leftover.size());
  for (int64_t r = 0; r < c.config.horizon; ++r)
    for (int64_t d = 0; d < c.config.action_dim; ++d) {
      const size_t at = static_cast<size_t>(r * c.config.action_dim + d);
      weights[at] = w[static_cast<size_t>(r)];
      if (r < rows && d < columns) leftover[at] = values[static_cast<size_t>(r * columns + d)];
    }
  return Guidance{c.ops.upload(leftover, shape), c.ops.upload(weights, shape),
                  c.json.at("rtc").at("max_guidance_weight").get<float>()};
}

// Runs the model; every tensor that it taps lands in the result by its name.
std::map<std::string, Rows> run(Case& c, const Prepared& p, const std::vector<float>& noise,
                                int64_t steps, const std::optional<Guidance>& guidance,
                                bool tapped) {
  std::map<std::string, Rows> got;
  if (tapped)
    c.ops.set_tap([&](const std::string& name, const Tensor& x) {
      got[name] = c.ops.download(x);
      return x;
    });
  read_prefix(c.ops, c.model, {&p.inputs, 1}, c.cache);
  const Schedule schedule = make_schedule(c.ops, c.model, steps, TimeSequence::lerobot);
  const Tensor x = c.ops.upload(noise, {c.config.horizon, c.config.action_dim});
  got["actions"] = c.ops.download(denoise(c.ops, c.model, c.cache, schedule, {x, guidance}));
  c.ops.set_tap({});
  return got;
}

// What the model calls a stored stage; of an image without its camera.
std::string tap_of(const std::string& stage) {
  static const std::vector<std::pair<std::regex, std::string>> names = {
      {std::regex(R"(image\.\d+\.)"), "siglip."},
      {std::regex(R"(siglip\.post_norm)"), "siglip.norm"},
      {std::regex(R"(language\.embed)"), "prefix.language"},
      {std::regex(R"(prefix\.embed)"), "vlm.embed"},
      {std::regex(R"(prefix\.(key|value)\.(\d+))"), "vlm.layer.$2.$1"},
      {std::regex(R"((layer\.\d+)\.attn)"), "$1.attention"},
      {std::regex(R"((step\.\d+)\.v$)"), "$1.suffix.velocity"},
      {std::regex(R"((step\.\d+)\.x$)"), "$1.denoise.actions"},
      {std::regex(R"((step\.\d+)\.time_embed)"), "$1.denoise.time"},
      {std::regex(R"((step\.\d+)\.cond)"), "$1.denoise.condition"}};
  std::string name = stage;
  for (const auto& [pattern, tap] : names) name = std::regex_replace(name, pattern, tap);
  return name;
}

// Where the network's stages stand in the stored tensor of the same meaning: images are stacked,
// absent ones and padding are missing, and the state token ran on its own.
struct Matched {
  Rows got, expected;
};

Rows pick_rows(const Rows& all, size_t width, const std::vector<bool>& keep) {
  Rows picked;
  for (size_t r = 0; r < keep.size(); ++r)
    if (keep[r])
      picked.insert(picked.end(), all.begin() + static_cast<int64_t>(r * width),
                    all.begin() + static_cast<int64_t>((r + 1) * width));
  return picked;
}

std::optional<Matched> match(const Case& c, const std::map<std::string, Rows>& got,
                             const Prepared& p, const HostTensor& stored, int64_t b) {
  const std::string& name = stored.name;
  const Rows expected = floats(stored.rows(b, b + 1));
  if (name.starts_with("image.")) {
    const size_t dot = name.find('.', 6);
    const int64_t camera = std::stoll(name.substr(6, dot - 6));
    const auto place = std::ranges::find(p.cameras, camera);
    if (place == p.cameras.end()) return {};
    const Rows& all = got.at(tap_of(name));
    const int64_t size = std::ssize(expected), at = (place - p.cameras.begin()) * size;
    ensure(at + size <= std::ssize(all), Fault::internal, "{}: {} values, expected {}", name,
           all.size(), at + size);
    return Matched{Rows(all.begin() + at, all.begin() + at + size), expected};
  }
  const auto found = got.find(tap_of(name));
  if (found == got.end()) return {};
  if (name == "language.embed")
    return Matched{found->second,
                   Rows(expected.begin(), expected.begin() + std::ssize(found->second))};
  const bool prefix_rows = name.starts_with("prefix.") || name.starts_with("vlm.");
  if (prefix_rows) {
    const Rows mask = floats(c.stages->find("prefix.mask")->rows(b, b + 1));
    std::vector<bool> keep;
    for (const float m : mask) keep.push_back(m != 0.f);
    return Matched{found->second, pick_rows(expected, expected.size() / mask.size(), keep)};
  }
  Rows rows = found->second;
  // The state token runs once, before the steps.
  const auto state = name.starts_with("step.")
                         ? got.find(found->first.substr(found->first.find('.', 5) + 1))
                         : got.end();
  if (state != got.end()) rows.insert(rows.begin(), state->second.begin(), state->second.end());
  return Matched{rows, expected};
}

// The velocity at the noise and other times than those of the steps; the cache is filled.
bool run_velocities(Case& c, const Rows& noise, const Tolerance& tolerance, int64_t b) {
  bool ok = true;
  for (const double t : c.json.value("velocity_times", std::vector<double>())) {
    const float time[] = {static_cast<float>(t)};
    const StepTables step = step_tables(c.ops, c.model, time, TimeSequence::lerobot)[0];
    const Tensor x = c.ops.upload(noise, {c.config.horizon, c.config.action_dim});
    const std::string name = "velocity." + nlohmann::json(t).dump();
    ensure(c.stages->find(name), Fault::checkpoint, "there is no {}", name);
    ok &= report(name, c.ops.download(velocity(c.ops, c.model, c.cache, step, x)),
                 floats(c.stages->find(name)->rows(b, b + 1)), tolerance.velocity);
  }
  return ok;
}

// All rows in one call.
bool run_batch(Case& c, const Tolerance& tolerance) {
  const int64_t rows = c.json.at("batch").get<int64_t>();
  std::vector<Inputs> inputs;
  std::vector<KvCache> caches;
  Rows noise;
  for (int64_t b = 0; b < rows; ++b) {
    inputs.push_back(prepare(c, b, input(c, "image_mask", b)).inputs);
    caches.push_back(make_cache(c.ops, c.config));
    const Rows drawn = input(c, "noise", b);
    noise.insert(noise.end(), drawn.begin(), drawn.end());
  }
  std::vector<KvCache*> each;
  for (KvCache& cache : caches) each.push_back(&cache);
  const Sequences sequences(each);
  read_prefix(c.ops, c.model, inputs, sequences);
  const Schedule schedule =
      make_schedule(c.ops, c.model, c.config.num_steps, TimeSequence::lerobot);
  const Tensor x = c.ops.upload(noise, {rows * c.config.horizon, c.config.action_dim});
  return report("actions of one call",
                c.ops.download(denoise(c.ops, c.model, sequences, schedule, {x})),
                floats(*c.stages->find("actions")), tolerance.actions);
}

bool run_tiny(Case& c, const Tolerance& tolerance, bool actions_only) {
  bool ok = true;
  int64_t compared = 0, absent = 0;
  const std::set<std::string> derived = {"prefix.mask", "prefix.position", "actions.f64",
                                         "actions.bf16_reference", "actions.without_rtc"};
  const std::optional<Guidance> guidance = guidance_of(c);
  for (int64_t b = 0; b < c.json.at("batch").get<int64_t>(); ++b) {
    const Prepared p = prepare(c, b, input(c, "image_mask", b));
    const std::vector<float> noise = input(c, "noise", b);
    auto got = run(c, p, noise, c.config.num_steps, guidance, !actions_only);
    for (const HostTensor& stored : c.stages->tensors()) {
      if (actions_only && stored.name != "actions") continue;
      if (derived.contains(stored.name) || stored.name == "rtc.weights" ||
          stored.name.ends_with(".time") || stored.name.starts_with("velocity."))
        continue;
      const std::optional<Matched> m = match(c, got, p, stored, b);
      if (!m) {
        ensure(stored.name.starts_with("image."), Fault::verdict, "{} was not computed",
               stored.name);
        ++absent;
        continue;
      }
      ok &= report(stored.name, m->got, m->expected, tolerance.of(stored.name));
      ++compared;
    }
    ok &= run_velocities(c, noise, tolerance, b);
    if (guidance) {
      got = run(c, p, noise, c.config.num_steps, {}, false);
      ok &=
          report("actions.without_rtc", got.at("actions"),
                 floats(c.stages->find("actions.without_rtc")->rows(b, b + 1)), tolerance.actions);
    }
  }
  if (c.json.at("batch").get<int64_t>() > 1) ok &= run_batch(c, tolerance);
  if (const HostTensor* weights = c.stages->find("rtc.weights"))
    ok &= report(weights->name, guidance_rows(c), floats(*weights), tolerance.stage);
  fmt::print("{} stages compared, {} of absent cameras not computed\n", compared, absent);
  return ok;
}

// The variants of one full-size case: masked third camera, swapped images, one step, negated state.
bool run_full(Case& c, const Tolerance& tolerance) {
  const auto expected = SafetensorsFile::open(c.folder / "actions.safetensors");
  const std::vector<float> noise = input(c, "noise", 0);
  bool ok = true;
  for (const HostTensor& stored : expected->tensors()) {
    std::vector<float> mask = input(c, "image_mask", 0);
    if (stored.name == "actions.third_camera_masked") mask[2] = 0.f;
    Prepared p = prepare(c, 0, mask);
    const int64_t steps = stored.name == "actions.steps1" ? 1 : c.config.num_steps;
    if (stored.name == "actions.state_negated") {
      std::vector<float> state = input(c, "state", 0);
      for (float& s : state) s = -s;
      p.inputs.state = c.ops.upload(state, {1, c.config.state_dim});
    }
    if (stored.name == "actions.first_two_images_swapped") {
      const int64_t n = c.config.vision.tokens();
      const Tensor swapped[] = {c.ops.slice_rows(p.inputs.patches, n, 2 * n),
                                c.ops.slice_rows(p.inputs.patches, 0, n),
                                c.ops.slice_rows(p.inputs.patches, 2 * n, 3 * n)};
      p.inputs.patches = c.ops.concat_rows(swapped);
    }
    const auto begin = std::chrono::steady_clock::now();
    const auto got = run(c, p, noise, steps, {}, false);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    fmt::print("{:.1f} s  ", took.count());
    // A single step of 1.0 passes on the velocity's whole error, which ten small ones average out.
    ok &= report(stored.name, got.at("actions"), floats(stored),
                 tolerance.actions * (steps == 1 ? 2 : 1));
  }
  return ok;
}

// As for every other test: see memory_limit.cc.
bool memory_was_bounded() {
  constexpr long kKibibytesMax = 1 << 20;
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  fmt::print("this process needed {} MiB\n", used.ru_maxrss / 1024);
  return used.ru_maxrss <= kKibibytesMax;
}

int verdict(bool ok, PolicyType policy, const fs::path& folder, bool bounded = true) {
  fmt::print("{} {}: {}\n", name(policy), folder.filename().string(),
             ok ? "all within tolerance" : "BEYOND TOLERANCE");
  return ok && (!bounded || memory_was_bounded()) ? 0 : 1;
}

// A checkpoint folder with one run of lerobot's whole pipeline: from frames, raw state and task to
// un-normalised actions. `tokenizer` is PaliGemma's; its ids are folded into the tiny vocabulary.
int run_pipeline(const Options& options) {
  const fs::path folder = options.folder;
  const Tolerance tolerance = tolerance_of(options.backend, options.precision, false);
  const auto stored = SafetensorsFile::open(folder / "pipeline.safetensors");
  const nlohmann::json json = read_json(folder / "config.json");
  OpenedModel m =
      open_model((folder / "checkpoint").string(),
                 {.config = (folder / "config.json").string(), .tokenizer = options.tokenizer});
  m.spec.folded_vocab = m.config.vocab;
  const auto expected = [&](const std::string& name) {
    ensure(stored->find(name), Fault::checkpoint, "{} has no {}", stored->name(), name);
    return floats(*stored->find(name));
  };
  Observation observation{.prompt = json.at("task").get<std::string>()};
  for (const HostTensor& t : stored->tensors()) {
    if (!t.name.starts_with("frame.")) continue;
    Image image{static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]), {}};
    for (const std::byte b : t.bytes) image.rgb.owned().push_back(std::to_integer<uint8_t>(b));
    observation.images[t.name.substr(6)] = image;
  }
  for (const float v : expected("state.raw")) observation.state.push_back(v);

  const std::vector<double> state = state_to_model(m.spec.transforms, observation.state).back();
  bool ok =
      report("state.normalized", {state.begin(), state.end()}, expected("state.normalized"), 1e-6);
  const std::vector<int32_t> ids =
      tokenize_prompt(*m.spec.tokenizer, *observation.prompt, state, m.spec.prompt).ids;
  Rows tokens(ids.begin(), ids.end());
  tokens.resize(expected("tokens.full_vocabulary").size());
  ok &= report("tokens.full_vocabulary", tokens, expected("tokens.full_vocabulary"), 0);

  const auto engine = open_engine(m, options, options.open());
  const Actions got = engine->policy->infer(observation, {.noise = expected("noise")});
  ok &= report("actions.normalized", got.normalized, expected("actions.normalized"),
               tolerance.actions);
  ok &= report("actions", {got.values.begin(), got.values.end()}, expected("actions"),
               tolerance.actions);
  return verdict(ok, m.config.policy, folder);
}

int run_folder(const Options& options) {
  const fs::path folder = options.folder;
  if (fs::exists(folder / "pipeline.safetensors")) return run_pipeline(options);
  Case c(options);
  c.json = read_json(folder / "config.json");
  c.config = read_config(c.json, (folder / "config.json").string());
  c.full_size = fs::exists(folder / "actions.safetensors");
  c.inputs = SafetensorsFile::open(folder / "inputs.safetensors");
  if (!c.full_size) c.stages = SafetensorsFile::open(folder / "stages.safetensors");
  const std::unique_ptr<WeightSource> source = weights_of(c);
  c.model = {c.config, load_weights(c.ops, *source, c.config, {.whole_prefix = !c.full_size})};
  c.cache = make_cache(c.ops, c.config);
  const bool ok = c.full_size ? run_full(c, tolerance_of(options.backend, options.precision, true))
                              : run_tiny(c, tolerance_of(options.backend, options.precision, false),
                                         options.actions_only);
  return verdict(ok, c.config.policy, folder, !c.full_size);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Compares tendon with a golden folder, stage by stage.");
  Options options;
  options.backend = "reference";
  options.precision = "f32";
  options.tokenizer = TENDON_TEST_TOKENIZER;
  app.add_option("folder", options.folder, "as tools/make_goldens writes it")->required();
  app.add_option("--backend", options.backend, "reference (default), cpu, ttnn or cuda");
  app.add_option("--precision", options.precision, "f32 (default), bf16, int8 or bfp8");
  app.add_option("--ttnn-sim", options.ttnn_sim,
                 "folder of scripts/ttnn-sim; else the fake device");
  app.add_flag("--actions-only", options.actions_only, "no stages: fewer calls of a slow device");
  app.add_option("--isa", options.isa, "instruction set of the cpu backend");
  app.add_option("--threads", options.threads, "default: one per core");
  app.add_option("--tokenizer", options.tokenizer, "of checkpoint folders");
  CLI11_PARSE(app, argc, argv);
  if (!options.ttnn_sim.empty() && !fs::exists(fs::path(options.ttnn_sim) / "environment")) {
    fmt::print("skipped: {} is not there; scripts/ttnn-sim makes it\n", options.ttnn_sim);
    return 77;
  }
  if (options.backend == "ttnn" && options.ttnn_sim.empty()) options.device = "fake";
  try {
    return run_folder(options);
  } catch (const std::exception& e) {
    const auto* error = dynamic_cast<const Error*>(&e);
    fmt::print(stderr, "golden_case: {}\n", e.what());
    return static_cast<int>(error ? error->fault() : Fault::internal);
  }
}
