// tendon bench: how long a call takes, and how close that is to what the machine can do.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/observation.h"
#include "cli/verbs.h"
#include "tensor/check.h"
#include "tensor/percentile.h"

namespace tendon::cli {
namespace {

struct BenchOptions {
  std::string model = "synthetic:pi0", compare;
  OpenOptions open;
  InferOptions infer;
  GivenObservation given;
  int64_t calls = 5, warm_up = 1, prompt_tokens = 0, cameras = 0;
  double slower = 0.05;
  bool json = false, ops = false, reference = false;
};

// One stage over all calls.
struct Stage {
  std::string name;
  std::vector<double> ms;
  int64_t flops = 0, bytes = 0, parts = 1;  // parts: denoising steps

  double percentile(double p) const {
    std::vector<double> sorted = ms;
    std::ranges::sort(sorted);
    return tendon::percentile(std::span<const double>(sorted), p);
  }
  double median() const { return percentile(0.5); }
  double gflops() const { return static_cast<double>(flops) / median() / 1e6; }
  double gbytes() const { return static_cast<double>(bytes) / median() / 1e6; }
};

struct Timings {
  std::vector<Stage> stages;  // the last is the whole call
  MachineLimits limits;
  double load_ms = 0, peak_memory_gb = 0;
  StageWork work;
  std::vector<OpUse> ops;
  std::string backend, method;
  bool simulated = false;
  int64_t images = 0;
  double reference_ms = 0;  // of one call of the reference backend, 0: not asked for

  const Stage& stage(std::string_view name) const {
    return *std::ranges::find(stages, name, &Stage::name);
  }
  // What the backend's own limits say about; a device that is not this machine has none here.
  bool limited() const { return limits.gflops > 0; }
  // Prefix and one velocity evaluation.
  double forward_ms() const {
    const Stage& denoise = stage("denoise");
    return stage("vision").median() + stage("prefill").median() +
           denoise.median() / static_cast<double>(denoise.parts);
  }
};

// A prompt of byte tokens: begin, text and, in openpi's form, the closing line feed.
Observation bench_observation(const BenchOptions& o, const Engine& engine) {
  Observation observation = observe(o.model, o.given, engine);
  if (o.prompt_tokens > 0) {
    ensure(o.prompt_tokens >= 3, Fault::usage, "--prompt-tokens {}: at least 3", o.prompt_tokens);
    observation.prompt = std::string(static_cast<size_t>(o.prompt_tokens - 2), 'x');
  }
  const auto cameras = static_cast<size_t>(o.cameras);
  while (o.cameras > 0 && observation.images.size() > cameras)
    observation.images.erase(std::prev(observation.images.end()));
  return observation;
}

double peak_memory_gb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024 / 1e9;
}

double reference_ms(const BenchOptions& o, const Observation& observation) {
  OpenOptions plain = o.open;
  plain.backend = "reference";
  plain.precision.clear();
  return Engine::open(o.model, plain).infer(observation, o.infer).times.total_ms;
}

Timings measure(const BenchOptions& o) {
  ensure(o.calls >= 1 && o.warm_up >= 0, Fault::usage, "--calls {} --warm-up {}: at least 1 and 0",
         o.calls, o.warm_up);
  Timings result;
  Engine engine = Engine::open(o.model, o.open);
  result.load_ms = engine.load_ms();
  result.backend = engine.backend();
  result.method = engine.method();
  result.simulated = engine.simulated();
  const Observation observation = bench_observation(o, engine);
  result.images = std::ssize(observation.images);
  for (int64_t i = 0; i < o.warm_up; ++i) engine.infer(observation, o.infer);
  const bool here = result.backend == "cpu" || result.backend == "reference";
  if (here) result.limits = measure_limits(o.open);
  const std::vector<OpUse> before = engine.op_use();

  Stage preprocess{"preprocess"}, vision{"vision"}, prefill{"prefill"}, denoise{"denoise"},
      postprocess{"postprocess"}, total{"whole call"};
  for (int64_t i = 0; i < o.calls; ++i) {
    const Actions a = engine.infer(observation, o.infer);
    preprocess.ms.push_back(a.times.preprocess_ms);
    vision.ms.push_back(a.times.vision_ms);
    prefill.ms.push_back(a.times.prefill_ms);
    denoise.ms.push_back(a.times.denoise_ms);
    postprocess.ms.push_back(a.times.postprocess_ms);
    total.ms.push_back(a.times.total_ms);
    result.work = a.work;
  }
  const StageWork& w = result.work;
  vision.flops = w.vision_flops, vision.bytes = w.vision_bytes;
  prefill.flops = w.prefill_flops, prefill.bytes = w.prefill_bytes;
  denoise.flops = w.denoise_flops, denoise.bytes = w.denoise_bytes;
  total.flops = vision.flops + prefill.flops + denoise.flops;
  total.bytes = vision.bytes + prefill.bytes + denoise.bytes;
  denoise.parts = o.infer.steps.value_or(engine.steps());
  result.stages = {preprocess, vision, prefill, denoise, postprocess, total};
  result.ops = engine.op_use();
  for (OpUse& use : result.ops)
    for (const OpUse& earlier : before)
      if (earlier.op == use.op) {
        use.native_calls -= earlier.native_calls, use.fallback_calls -= earlier.fallback_calls;
        use.flops -= earlier.flops, use.bytes -= earlier.bytes, use.seconds -= earlier.seconds;
      }
  // The machine's own speed drifts: the better of before and after is its limit.
  const MachineLimits after = here ? measure_limits(o.open) : MachineLimits{};
  result.limits.gflops = std::max(result.limits.gflops, after.gflops);
  result.limits.gbytes = std::max(result.limits.gbytes, after.gbytes);
  result.peak_memory_gb = peak_memory_gb();
  if (o.reference) result.reference_ms = reference_ms(o, observation);
  return result;
}

// The columns that accelerator ports of pi0 are compared by. Times of a simulation are the host's.
nlohmann::json columns_json(const Timings& r) {
  const double vision = r.stage("vision").median(), prefill = r.stage("prefill").median();
  const double total = r.stage("whole call").median();
  const auto images = static_cast<double>(r.images);
  const auto tokens = static_cast<double>(r.work.prefix_tokens);
  nlohmann::json json{{"forward_ms", r.forward_ms()},
                      {"denoise_ms", r.stage("denoise").median()},
                      {"total_ms", total},
                      {"ms_per_image", images > 0 ? vision / images : 0.0},
                      {"images_per_s", images > 0 ? 1e3 * images / vision : 0.0},
                      {"ms_per_token", prefill / tokens},
                      {"tokens_per_s", 1e3 * tokens / prefill}};
  if (r.limited()) json["utilisation"] = r.stage("whole call").gflops() / r.limits.gflops;
  if (r.reference_ms > 0) json["speed_up_over_reference"] = r.reference_ms / total;
  return json;
}

nlohmann::json to_json(const BenchOptions& o, const Timings& r) {
  nlohmann::json json{{"model", o.model},
                      {"backend", r.backend},
                      {"method", r.method},
                      {"simulated", r.simulated},
                      {"threads", r.limits.threads},
                      {"calls", o.calls},
                      {"load_ms", r.load_ms},
                      {"peak_memory_gb", r.peak_memory_gb},
                      {"peak_gflops", r.limits.gflops},
                      {"peak_gbytes_per_s", r.limits.gbytes},
                      {"prefix_tokens", r.work.prefix_tokens},
                      {"flops_done", r.stages.back().flops},
                      {"flops_skipped", r.work.skipped_flops},
                      {"version", version()}};
  for (const Stage& s : r.stages) {
    nlohmann::json stage{
        {"p50_ms", s.median()}, {"p90_ms", s.percentile(0.9)}, {"p99_ms", s.percentile(0.99)}};
    if (s.flops > 0) {
      stage["gflops"] = s.gflops();
      stage["gbytes_per_s"] = s.gbytes();
    }
    if (s.flops > 0 && r.limited()) {
      stage["fraction_of_peak"] = s.gflops() / r.limits.gflops;
      stage["fraction_of_bandwidth"] = s.gbytes() / r.limits.gbytes;
    }
    if (s.name == "denoise") stage["per_step_ms"] = s.median() / static_cast<double>(s.parts);
    json["stages"][s.name == "whole call" ? "total" : s.name] = stage;
  }
  if (r.limited()) json["fraction_of_peak"] = json["stages"]["total"]["fraction_of_peak"];
  json["columns"] = columns_json(r);
  for (const OpUse& use : r.ops)
    json["ops"][use.op] = {{"calls", use.native_calls + use.fallback_calls},
                           {"flops", use.flops},
                           {"bytes", use.bytes},
                           {"seconds", use.seconds}};
  return json;
}

void print_text(const BenchOptions& o, const Timings& r) {
  fmt::print("{} on {} ({}), {} calls\n", o.model, r.backend, r.method, o.calls);
  if (r.simulated)
    fmt::print(
        "the device is simulated: all times are of this machine simulating it and say "
        "nothing about a chip\n");
  fmt::print("load {:.1f} s · peak memory {:.2f} GB · prefix {} tokens\n", r.load_ms / 1e3,
             r.peak_memory_gb, r.work.prefix_tokens);
  if (r.limited())
    fmt::print(
        "limits of this machine with {} threads, measured now: {:.0f} GFLOP/s, {:.1f} "
        "GB/s\n",
        r.limits.threads, r.limits.gflops, r.limits.gbytes);
  fmt::print("\n");
  fmt::print("{:12} {:>11} {:>11} {:>11} {:>9} {:>9} {:>9}\n", "stage", "p50 ms", "p90 ms",
             "p99 ms", "GFLOP/s", "of peak", "GB/s");
  for (const Stage& s : r.stages) {
    fmt::print("{:12} {:11.2f} {:11.2f} {:11.2f}", s.name, s.median(), s.percentile(0.9),
               s.percentile(0.99));
    if (s.flops > 0)
      fmt::print(" {:9.1f} {:>9} {:9.1f}", s.gflops(),
                 r.limited() ? fmt::format("{:.1f}%", 100 * s.gflops() / r.limits.gflops) : "-",
                 s.gbytes());
    if (s.name == "denoise")
      fmt::print("   {:.2f} ms per step", s.median() / static_cast<double>(s.parts));
    fmt::print("\n");
  }
  const nlohmann::json c = columns_json(r);
  const auto number = [&](const char* key) { return c.at(key).get<double>(); };
  fmt::print(
      "\nforward {:.2f} ms · denoise {:.2f} ms · total {:.2f} ms\n"
      "per image {:.2f} ms ({:.2f} images/s) · per prefix token {:.3f} ms ({:.1f} "
      "tokens/s)\n",
      number("forward_ms"), number("denoise_ms"), number("total_ms"), number("ms_per_image"),
      number("images_per_s"), number("ms_per_token"), number("tokens_per_s"));
  if (r.limited()) fmt::print("utilisation {:.1f}%\n", 100 * number("utilisation"));
  if (r.reference_ms > 0)
    fmt::print("{:.1f} times as fast as the reference ({:.2f} ms)\n",
               number("speed_up_over_reference"), r.reference_ms);
  const double done = static_cast<double>(r.stages.back().flops) / 1e12;
  fmt::print("\n{:.3f} TFLOP done, {:.3f} skipped\n", done,
             static_cast<double>(r.work.skipped_flops) / 1e12);
  if (!o.ops) return;
  fmt::print("\n{:14} {:>8} {:>11} {:>11} {:>9}\n", "op", "calls", "ms/call", "ms in all",
             "GFLOP/s");
  for (const OpUse& use : r.ops) {
    const int64_t calls = use.native_calls + use.fallback_calls;
    if (calls == 0) continue;
    fmt::print("{:14} {:8} {:11.4f} {:11.2f} {:9.1f}\n", use.op, calls,
               1e3 * use.seconds / static_cast<double>(calls), 1e3 * use.seconds,
               static_cast<double>(use.flops) / std::max(use.seconds, 1e-9) / 1e9);
  }
}

// Medians against those of an earlier `bench --json`; as fractions of the limit that each run
// measured, so that a slower hour of the machine is not blamed on the code.
bool faster_or_equal(const BenchOptions& o, const nlohmann::json& now) {
  std::ifstream file(o.compare);
  ensure(file.good(), Fault::input, "cannot read {}", o.compare);
  const nlohmann::json then = nlohmann::json::parse(file, nullptr, false);
  ensure(then.is_object() && then.contains("stages") && then.contains("fraction_of_peak"),
         Fault::input, "{}: not the output of tendon bench --json on a backend of this machine",
         o.compare);
  ensure(now.contains("fraction_of_peak"), Fault::usage,
         "--compare: only backends whose limits are measured can be compared");
  bool ok = true;
  fmt::print(stderr, "\n{:12} {:>10} {:>10} {:>16}\n", "stage", "then ms", "now ms",
             "ratio to peak");
  for (const char* stage : {"vision", "prefill", "denoise", "total"}) {
    const nlohmann::json& a = then.at("stages").at(stage);
    const nlohmann::json& b = now.at("stages").at(stage);
    const double ratio =
        b.at("fraction_of_peak").get<double>() / a.at("fraction_of_peak").get<double>();
    const bool good = ratio >= 1 - o.slower;
    ok = ok && (good || std::string(stage) != "total");
    fmt::print(stderr, "{:12} {:10.2f} {:10.2f} {:15.3f} {}\n", stage, a.at("p50_ms").get<double>(),
               b.at("p50_ms").get<double>(), ratio,
               ratio > 1 + o.slower ? "faster"
               : good               ? "the same"
                                    : "SLOWER");
  }
  return ok;
}

void bench(const BenchOptions& o) {
  const Timings result = measure(o);
  const nlohmann::json json = to_json(o, result);
  if (o.json) {
    fmt::print("{}\n", json.dump());
  } else {
    print_text(o, result);
  }
  if (!o.compare.empty())
    ensure(faster_or_equal(o, json), Fault::verdict, "slower than {}", o.compare);
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("bench", "latency per stage beside the machine's limits");
  const auto o = std::make_shared<BenchOptions>();
  add_model_options(*verb, o->model, o->open);
  add_observation_options(*verb, o->given);
  verb->add_option("--calls", o->calls, "measured calls; default 5");
  verb->add_option("--warm-up", o->warm_up, "calls before; default 1");
  verb->add_option("--steps", o->infer.steps, "Euler steps; default: the model's own");
  verb->add_option("--cameras", o->cameras, "keep only the first so many cameras");
  verb->add_option("--prompt-tokens", o->prompt_tokens,
                   "length of a made-up prompt, for generated models");
  verb->add_flag("--ops", o->ops, "also the table of ops");
  verb->add_flag("--reference", o->reference,
                 "also one call of the reference backend, for the speed-up");
  verb->add_flag("--json", o->json, "one JSON object on standard output");
  verb->add_option("--compare", o->compare,
                   "an earlier --json output; exit 1 when the whole call got slower");
  verb->callback([o] { bench(*o); });
}

}  // namespace tendon::cli
