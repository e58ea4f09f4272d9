// tendon run: one observation -> one action chunk.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct RunOptions {
  std::string model;
  OpenOptions open;
  InferOptions infer;
  GivenObservation given;
  std::string noise, out, plot;
  std::optional<std::string> sequence;
  bool json = false;
};

// A value as one of eight bars between the lowest and the highest.
std::string bars(const std::vector<double>& values) {
  static constexpr const char* kBars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const auto [low, high] = std::ranges::minmax(values);
  std::string line;
  for (const double value : values) {
    const double part = high > low ? (value - low) / (high - low) : 0.5;
    line += kBars[static_cast<size_t>(std::clamp(part * 8.0, 0.0, 7.0))];
  }
  return line;
}

TimeSequence time_sequence(const std::string& name) {
  if (name == "lerobot") return TimeSequence::lerobot;
  if (name == "lerobot-sum") return TimeSequence::lerobot_sum;
  ensure(name == "openpi", Fault::usage,
         "--time-sequence {}: expected lerobot, lerobot-sum or openpi", name);
  return TimeSequence::openpi;
}

Json to_json(const RunOptions& o, const Engine& engine, const Actions& a) {
  Json json{{"model", o.model},
            {"backend", engine.backend()},
            {"method", engine.method()},
            {"names", engine.action_names()},
            {"horizon", a.horizon},
            {"load_ms", engine.load_ms()},
            {"prefix_tokens", a.work.prefix_tokens},
            {"flops_done", a.work.vision_flops + a.work.prefill_flops + a.work.denoise_flops},
            {"flops_skipped", a.work.skipped_flops},
            {"warnings", a.warnings},
            {"notes", engine.notes()},
            {"actions", rows_of(a)}};
  for (const Stage& s : kStages) json["stage_ms"][s.name] = a.times.*s.ms;
  int64_t native = 0, fallback = 0;
  for (const OpUse& use : engine.op_use()) {
    json["ops"][use.op] = {{"native", use.native_calls},
                           {"fallback", use.fallback_calls},
                           {"flops", use.flops},
                           {"seconds", use.seconds}};
    native += use.native_calls;
    fallback += use.fallback_calls;
  }
  if (const auto memory = engine.device_memory()) json["device_memory"] = memory_json(*memory);
  json["native"] = native;
  json["fallback"] = fallback;
  return json;
}

std::string actions_text(const Json& json, const Actions& a) {
  Json joints;
  for (size_t d = 0; d < json.at("names").size(); ++d) {
    const std::vector<double> values = column_of(a, d);
    const auto [low, high] = std::ranges::minmax(values);
    joints.push_back({{"action", json.at("names").at(d)},
                      {"first", values.front()},
                      {"min", low},
                      {"max", high},
                      {"last", values.back()},
                      {"bars", bars(values)}});
  }
  const std::string row = fmt::format(
      "action {{action}} | first {{first:.5f}} | min {{min:.5f}} | "
      "max {{max:.5f}} | last {{last:.5f}} | over {} steps {{bars}}",
      a.horizon);
  return table(row, joints);
}

void print_times(const Json& json) {
  fmt::print(stderr, "{}",
             lines("preprocess {stage_ms/preprocess:.1f} ms · vision {stage_ms/vision:.1f} ms · "
                   "prefill {stage_ms/prefill:.1f} ms · denoise {stage_ms/denoise:.1f} ms · "
                   "postprocess {stage_ms/postprocess:.1f} ms · total {stage_ms/total:.1f} ms\n"
                   "backend {backend}: native {native} · fallback {fallback}",
                   json) +
                 lines(kDeviceMemoryLines, json));
}

void run(RunOptions o) {
  if (o.sequence) o.infer.sequence = time_sequence(*o.sequence);
  if (!o.noise.empty()) {
    const std::vector<double> noise = read_numbers(o.noise, "--noise");
    o.infer.noise.assign(noise.begin(), noise.end());
  }
  Engine engine = Engine::open(o.model, o.open);
  const Actions actions = engine.infer(observe(o.model, o.given, engine), o.infer);
  for (const std::string& warning : actions.warnings) fmt::print(stderr, "warning: {}\n", warning);
  if (!o.out.empty()) write_actions(o.out, actions, engine.action_names());
  if (!o.plot.empty()) write_file(o.plot, plot_svg(actions, engine.action_names()));
  const Json json = to_json(o, engine, actions);
  print_report(o.json, json, actions_text(json, actions));
  if (!o.json) print_times(json);
}

}  // namespace

void add_run(CLI::App& app) {
  const auto [verb, o] =
      add_verb<RunOptions>(app, "run", "one observation -> one action chunk", run);
  verb.add_option("--seed", o.infer.seed, "of the noise; default 0");
  verb.add_option("--noise", o.noise, "explicit noise, horizon x action dims: .json or .npy");
  verb.add_option("--time-sequence", o.sequence,
                  "lerobot, lerobot-sum (as up to 0.4.2) or openpi; default: the model's own");
  verb.add_option("--fallback", o.open.fallback,
                  "reference: ops that the backend lacks run there and are counted");
  verb.add_option("--out", o.out, "write the chunk to FILE.json or FILE.npy");
  verb.add_option("--plot", o.plot, "write a plot per joint to FILE.svg");
}

}  // namespace tendon::cli
