// tendon bench: how long a call takes, and how close that is to what the machine can do.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <map>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/backends.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct BenchOptions {
  std::string model = "synthetic:pi0", compare;
  OpenOptions open;
  InferOptions infer;
  GivenObservation given;
  int64_t calls = 5, warm_up = 1, prompt_tokens = 0, cameras = 0;
  std::vector<int64_t> batch;  // also calls of so many rows
  double slower = 0.05;
  bool json = false, ops = false, reference = false;
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

// The measured calls.
struct Calls {
  std::map<std::string, std::vector<double>> ms;  // by stage
  StageWork work;                                 // of one
  bool simulated = false;                         // then no speed follows from a time
  MachineLimits limits;                           // none where the device is not this machine
  std::vector<OpUse> ops_before, ops_after;
};

Calls measure(const BenchOptions& o, Engine& engine, const Observation& observation) {
  Calls calls{.simulated = engine.simulated()};
  for (int64_t i = 0; i < o.warm_up; ++i) engine.infer(observation, o.infer);
  const bool here = engine.backend() == "cpu" || engine.backend() == "reference";
  if (here) calls.limits = measure_limits(o.open);
  calls.ops_before = engine.op_use();
  for (int64_t i = 0; i < o.calls; ++i) {
    const Actions a = engine.infer(observation, o.infer);
    for (const Stage& s : kStages) calls.ms[s.name].push_back(a.times.*s.ms);
    calls.work = a.work;
  }
  calls.ops_after = engine.op_use();
  // The machine's own speed drifts: the better of before and after is its limit.
  const MachineLimits after = here ? measure_limits(o.open) : MachineLimits{};
  calls.limits.gflops = std::max(calls.limits.gflops, after.gflops);
  calls.limits.gbytes = std::max(calls.limits.gbytes, after.gbytes);
  return calls;
}

// Calls of several rows, in turns: every row an observation of its own, or all of them draws over
// one prefix.
Json batch_json(const BenchOptions& o, Engine& engine, const Observation& observation) {
  struct Form {
    std::string name;
    std::vector<BatchRow> rows;
    std::vector<double> ms;
  };
  const auto rows_max = static_cast<size_t>(std::ranges::max(o.batch));
  const std::vector<Observation> copies(rows_max, observation);
  std::vector<Form> forms;
  for (const bool shared : {false, true})
    for (const int64_t rows : o.batch) {
      Form form{.name = fmt::format("{} {}", rows, shared ? "draws" : "rows")};
      for (size_t r = 0; std::cmp_less(r, rows); ++r) {
        form.rows.push_back({shared ? &copies[0] : &copies[r], o.infer});
        form.rows.back().options.seed += r;
      }
      forms.push_back(std::move(form));
    }
  for (int64_t i = 0; i < o.calls; ++i)
    for (Form& form : forms) form.ms.push_back(engine.infer_batch(form.rows)[0].times.total_ms);
  Json json;
  double single = 0;
  for (const Form& form : forms) {
    const double ms = std::get<0>(p50_p90_p99(form.ms)),
                 rows = static_cast<double>(form.rows.size());
    if (single == 0) single = ms / rows;
    json[form.name] = {{"p50_ms", ms},
                       {"ms_per_chunk", ms / rows},
                       {"chunks_per_s", 1e3 * rows / ms},
                       {"of_first", ms / rows / single}};
  }
  return json;
}

Json stages_json(const Calls& calls, int64_t steps) {
  Json stages;
  int64_t flops_done = 0, bytes_done = 0;
  for (const Stage& s : kStages) {
    const auto [p50, p90, p99] = p50_p90_p99(calls.ms.at(s.name));
    Json& stage = stages[s.name];
    stage = {{"p50_ms", p50}, {"p90_ms", p90}, {"p99_ms", p99}};
    if (s.ms == &StageTimes::denoise_ms) stage["per_step_ms"] = p50 / static_cast<double>(steps);
    const bool total = s.ms == &StageTimes::total_ms;
    const int64_t flops = total ? flops_done : s.flops ? calls.work.*s.flops : 0;
    const int64_t bytes = total ? bytes_done : s.bytes ? calls.work.*s.bytes : 0;
    if (flops == 0 || calls.simulated) continue;
    flops_done += flops, bytes_done += bytes;
    const double gflops = static_cast<double>(flops) / p50 / 1e6;
    const double gbytes = static_cast<double>(bytes) / p50 / 1e6;
    stage["gflops"] = gflops;
    stage["gbytes_per_s"] = gbytes;
    if (calls.limits.gflops == 0) continue;
    stage["fraction_of_peak"] = gflops / calls.limits.gflops;
    stage["fraction_of_bandwidth"] = gbytes / calls.limits.gbytes;
  }
  return stages;
}

// The columns that accelerator ports of pi0 are compared by.
Json columns_json(const Json& stages, int64_t image_count, int64_t token_count) {
  const auto ms = [&](const char* stage, const char* key = "p50_ms") {
    return stages.at(stage).at(key).get<double>();
  };
  const auto images = static_cast<double>(image_count), tokens = static_cast<double>(token_count);
  const double vision = ms("vision"), prefill = ms("prefill");
  Json json{{"forward_ms", vision + prefill + ms("denoise", "per_step_ms")},
            {"denoise_ms", ms("denoise")},
            {"total_ms", ms("total")},
            {"ms_per_image", images > 0 ? vision / images : 0.0},
            {"images_per_s", images > 0 ? 1e3 * images / vision : 0.0},
            {"ms_per_token", prefill / tokens},
            {"tokens_per_s", 1e3 * tokens / prefill}};
  if (stages.at("total").contains("fraction_of_peak"))
    json["utilisation"] = stages.at("total").at("fraction_of_peak");
  return json;
}

// What the measured calls added to each op.
Json ops_json(const Calls& calls) {
  Json ops = Json::object();
  for (OpUse use : calls.ops_after) {
    int64_t count = use.native_calls + use.fallback_calls;
    for (const OpUse& before : calls.ops_before)
      if (before.op == use.op) {
        count -= before.native_calls + before.fallback_calls;
        use.flops -= before.flops, use.bytes -= before.bytes, use.seconds -= before.seconds;
      }
    ops[use.op] = {
        {"calls", count}, {"flops", use.flops}, {"bytes", use.bytes}, {"seconds", use.seconds}};
    if (use.seconds <= 0) continue;  // replayed or simulated
    ops[use.op]["ms"] = 1e3 * use.seconds;
    ops[use.op]["ms_per_call"] = 1e3 * use.seconds / static_cast<double>(count);
    ops[use.op]["gflops"] = 1e-9 * static_cast<double>(use.flops) / use.seconds;
  }
  return ops;
}

Json bench_json(const BenchOptions& o) {
  ensure(o.calls >= 1 && o.warm_up >= 0, Fault::usage, "--calls {} --warm-up {}: at least 1 and 0",
         o.calls, o.warm_up);
  Engine engine = Engine::open(o.model, o.open);
  ensure(!o.reference || !engine.simulated(), Fault::usage,
         "--reference: {} is simulated, and the times of a simulation say nothing about its speed",
         engine.method());
  const Observation observation = bench_observation(o, engine);
  const Calls calls = measure(o, engine, observation);
  const StageWork& w = calls.work;
  Json json{{"model", o.model},
            {"backend", engine.backend()},
            {"method", engine.method()},
            {"simulated", engine.simulated()},
            {"threads", calls.limits.threads},
            {"calls", o.calls},
            {"load_ms", engine.load_ms()},
            {"peak_memory_gb", peak_memory_gb()},
            {"peak_gflops", calls.limits.gflops},
            {"peak_gbytes_per_s", calls.limits.gbytes},
            {"prefix_tokens", w.prefix_tokens},
            {"flops_done", w.vision_flops + w.prefill_flops + w.denoise_flops},
            {"flops_skipped", w.skipped_flops},
            {"version", version()},
            {"stages", stages_json(calls, o.infer.steps.value_or(engine.steps()))},
            {"ops", ops_json(calls)}};
  if (const auto memory = engine.device_memory()) json["device_memory"] = memory_json(*memory);
  if (calls.simulated) return json;
  if (!o.batch.empty()) {
    json["batch"] = batch_json(o, engine, observation);
    json["batch_peak_memory_gb"] = peak_memory_gb();
  }
  json["columns"] = columns_json(json["stages"], std::ssize(observation.images), w.prefix_tokens);
  if (json["columns"].contains("utilisation"))
    json["fraction_of_peak"] = json["columns"]["utilisation"];
  if (o.reference) {
    Engine reference = Engine::open(o.model, moved_to(o.open, "reference"));
    const double ms = reference.infer(observation, o.infer).times.total_ms;
    json["columns"]["reference_ms"] = ms;
    json["columns"]["speed_up_over_reference"] = ms / json["columns"]["total_ms"].get<double>();
  }
  return json;
}

std::string bench_text(const Json& json, bool ops) {
  std::string text = lines("{model} on {backend} ({method}), {calls} calls", json);
  if (json.at("simulated"))
    text +=
        "the device is simulated: all times are of this machine simulating it and say nothing "
        "about a chip\n";
  text += lines(
      "load {load_ms:.1k} s · peak memory {peak_memory_gb:.2f} GB · prefix {prefix_tokens} tokens\n"
      "utilisation {fraction_of_peak:.1%} of the limits of this machine with {threads} threads, "
      "measured now: {peak_gflops:.0f} GFLOP/s, {peak_gbytes_per_s:.1f} GB/s\n",
      json);
  text += lines(kDeviceMemoryLines, json);
  text += table(
      "stage {} | p50 ms {p50_ms:.2f} | p90 ms {p90_ms:.2f} | p99 ms {p99_ms:.2f} | GFLOP/s "
      "{gflops:.1f} | of peak {fraction_of_peak:.1%} | GB/s {gbytes_per_s:.1f} | ms per step "
      "{per_step_ms:.2f}",
      json.at("stages"));
  text += lines(
      "\nforward {forward_ms:.2f} ms · denoise {denoise_ms:.2f} ms · total {total_ms:.2f} ms\n"
      "per image {ms_per_image:.2f} ms ({images_per_s:.2f} images/s) · per prefix token "
      "{ms_per_token:.3f} ms ({tokens_per_s:.1f} tokens/s)\n"
      "{speed_up_over_reference:.1f} times as fast as the reference ({reference_ms:.2f} ms)",
      json.value("columns", Json::object()));
  text += lines("\n{flops_done:.3T} TFLOP done, {flops_skipped:.3T} skipped", json);
  if (json.contains("batch"))
    text += "\n" +
            table(
                "batch {} | p50 ms {p50_ms:.2f} | ms per chunk {ms_per_chunk:.2f} | "
                "chunks/s {chunks_per_s:.2f} | of the first {of_first:.2f}",
                json.at("batch")) +
            lines("peak memory {batch_peak_memory_gb:.2f} GB", json);
  if (ops)
    text += "\n" + table(
                       "op {} | calls {calls:d} | ms/call {ms_per_call:.4f} | ms in all "
                       "{ms:.2f} | GFLOP/s {gflops:.1f}",
                       json.at("ops"));
  return text;
}

// Medians against those of an earlier `bench --json`; as fractions of the limit that each run
// measured, so that a slower hour of the machine is not blamed on the code.
bool faster_or_equal(const BenchOptions& o, const Json& now) {
  const Json then = Json::parse(read_text(o.compare, "--compare"), nullptr, false);
  ensure(then.is_object() && then.contains("stages") && then.contains("fraction_of_peak"),
         Fault::input, "{}: not the output of tendon bench --json on a backend of this machine",
         o.compare);
  ensure(now.contains("fraction_of_peak"), Fault::usage,
         "--compare: only backends whose limits are measured can be compared");
  const auto peak = [](const Json& run, const char* stage) {
    return run.at("stages").at(stage).at("fraction_of_peak").get<double>();
  };
  bool ok = true;
  Json rows;
  for (const char* stage : {"vision", "prefill", "denoise", "total"}) {
    const double ratio = peak(now, stage) / peak(then, stage);
    const bool good = ratio >= 1 - o.slower;
    ok = ok && (good || std::string(stage) != "total");
    rows[stage] = {{"then_ms", then.at("stages").at(stage).at("p50_ms")},
                   {"now_ms", now.at("stages").at(stage).at("p50_ms")},
                   {"ratio", ratio},
                   {"verdict", ratio > 1 + o.slower ? "faster"
                               : good               ? "the same"
                                                    : "SLOWER"}};
  }
  fmt::print(stderr, "\n{}",
             table("stage {} | then ms {then_ms:.2f} | now ms {now_ms:.2f} | ratio to peak "
                   "{ratio:.3f} | {verdict}",
                   rows));
  return ok;
}

void bench(const BenchOptions& o) {
  const Json json = bench_json(o);
  print_report(o.json, json, bench_text(json, o.ops));
  if (!o.compare.empty())
    ensure(faster_or_equal(o, json), Fault::verdict, "slower than {}", o.compare);
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto [verb, o] =
      add_verb<BenchOptions>(app, "bench", "latency per stage beside the machine's limits", bench);
  verb.add_option("--calls", o.calls, "measured calls; default 5");
  verb.add_option("--warm-up", o.warm_up, "calls before; default 1");
  verb.add_option("--cameras", o.cameras, "keep only the first so many cameras");
  verb.add_option("--prompt-tokens", o.prompt_tokens,
                  "length of a made-up prompt, for generated models");
  verb.add_option("--batch", o.batch,
                  "also calls of so many rows, of several observations and of one: 1,2,4,8")
      ->delimiter(',')
      ->check(CLI::Range(1, 64));
  verb.add_flag("--ops", o.ops, "also the table of ops");
  verb.add_flag("--reference", o.reference,
                "also one call of the reference backend, for the speed-up");
  verb.add_option("--compare", o.compare,
                  "an earlier --json output; exit 1 when the whole call got slower");
}

}  // namespace tendon::cli
