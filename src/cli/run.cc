// tendon run: one observation -> one action chunk.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/chunk_files.h"
#include "cli/observation.h"
#include "cli/verbs.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct RunOptions {
  std::string model;
  OpenOptions open;
  InferOptions infer;
  GivenObservation given;
  std::string noise, sequence = "lerobot", out, plot;
  bool json = false;
};

std::string sparkline(const Actions& a, int64_t d) {
  static constexpr const char* kBars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const auto value = [&](int64_t r) { return a.values[static_cast<size_t>(r * a.dim + d)]; };
  double low = value(0), high = value(0);
  for (int64_t r = 0; r < a.horizon; ++r) {
    low = std::min(low, value(r));
    high = std::max(high, value(r));
  }
  std::string line;
  for (int64_t r = 0; r < a.horizon; ++r) {
    const double part = high > low ? (value(r) - low) / (high - low) : 0.5;
    line += kBars[static_cast<size_t>(std::clamp(part * 8.0, 0.0, 7.0))];
  }
  return line;
}

void print_table(const Actions& a, const std::vector<std::string>& names) {
  size_t width = 6;
  for (const std::string& n : names) width = std::max(width, n.size());
  fmt::print("{:{}}  {:>10}  {:>10}  {:>10}  {:>10}  over {} steps\n", "action", width, "first",
             "min", "max", "last", a.horizon);
  for (int64_t d = 0; d < a.dim; ++d) {
    double low = a.values[static_cast<size_t>(d)], high = low, last = low;
    for (int64_t r = 0; r < a.horizon; ++r) {
      last = a.values[static_cast<size_t>(r * a.dim + d)];
      low = std::min(low, last);
      high = std::max(high, last);
    }
    fmt::print("{:{}}  {:10.5f}  {:10.5f}  {:10.5f}  {:10.5f}  {}\n", names[static_cast<size_t>(d)],
               width, a.values[static_cast<size_t>(d)], low, high, last, sparkline(a, d));
  }
}

nlohmann::json times_json(const StageTimes& t) {
  return {{"preprocess", t.preprocess_ms},   {"vision", t.vision_ms},
          {"prefill", t.prefill_ms},         {"denoise", t.denoise_ms},
          {"postprocess", t.postprocess_ms}, {"total", t.total_ms}};
}

void print_json(const RunOptions& o, const Engine& engine, const Actions& a) {
  nlohmann::json json{
      {"model", o.model},
      {"backend", engine.backend()},
      {"method", engine.method()},
      {"names", engine.action_names()},
      {"horizon", a.horizon},
      {"load_ms", engine.load_ms()},
      {"stage_ms", times_json(a.times)},
      {"prefix_tokens", a.work.prefix_tokens},
      {"flops_done", a.work.vision_flops + a.work.prefill_flops + a.work.denoise_flops},
      {"flops_skipped", a.work.skipped_flops},
      {"warnings", a.warnings},
      {"notes", engine.notes()},
      {"actions", nlohmann::json::array()}};
  for (int64_t r = 0; r < a.horizon; ++r)
    json["actions"].push_back(
        std::vector<double>(a.values.begin() + r * a.dim, a.values.begin() + (r + 1) * a.dim));
  int64_t native = 0, fallback = 0;
  for (const OpUse& use : engine.op_use()) {
    json["ops"][use.op] = {{"native", use.native_calls},
                           {"fallback", use.fallback_calls},
                           {"flops", use.flops},
                           {"seconds", use.seconds}};
    native += use.native_calls;
    fallback += use.fallback_calls;
  }
  json["native"] = native;
  json["fallback"] = fallback;
  fmt::print("{}\n", json.dump());
}

void print_text(const Engine& engine, const Actions& a) {
  print_table(a, engine.action_names());
  const StageTimes& t = a.times;
  fmt::print(stderr,
             "preprocess {:.1f} ms · vision {:.1f} ms · prefill {:.1f} ms · denoise {:.1f} ms · "
             "postprocess {:.1f} ms · total {:.1f} ms\n",
             t.preprocess_ms, t.vision_ms, t.prefill_ms, t.denoise_ms, t.postprocess_ms,
             t.total_ms);
  int64_t native = 0, fallback = 0;
  for (const OpUse& use : engine.op_use()) {
    native += use.native_calls;
    fallback += use.fallback_calls;
  }
  fmt::print(stderr, "backend {}: native {} · fallback {}\n", engine.backend(), native, fallback);
}

void run(RunOptions o) {
  ensure(o.sequence == "lerobot" || o.sequence == "openpi", Fault::usage,
         "--time-sequence {}: expected lerobot or openpi", o.sequence);
  o.infer.sequence = o.sequence == "openpi" ? TimeSequence::openpi : TimeSequence::lerobot;
  if (!o.noise.empty()) {
    const std::vector<double> noise = read_numbers(o.noise, "--noise");
    o.infer.noise.assign(noise.size(), 0.f);
    std::ranges::transform(noise, o.infer.noise.begin(),
                           [](double v) { return static_cast<float>(v); });
  }
  Engine engine = Engine::open(o.model, o.open);
  const Actions actions = engine.infer(observe(o.model, o.given, engine), o.infer);
  for (const std::string& warning : actions.warnings) fmt::print(stderr, "warning: {}\n", warning);
  if (!o.out.empty()) write_actions(o.out, actions, engine.action_names());
  if (!o.plot.empty()) write_file(o.plot, plot_svg(actions, engine.action_names()));
  if (o.json) {
    print_json(o, engine, actions);
  } else {
    print_text(engine, actions);
  }
}

}  // namespace

void add_run(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("run", "one observation -> one action chunk");
  const auto o = std::make_shared<RunOptions>();
  add_model_options(*verb, o->model, o->open);
  add_observation_options(*verb, o->given);
  verb->add_option("--seed", o->infer.seed, "of the noise; default 0");
  verb->add_option("--noise", o->noise, "explicit noise, horizon x action dims: .json or .npy");
  verb->add_option("--steps", o->infer.steps, "Euler steps; default: the model's own");
  verb->add_option("--time-sequence", o->sequence, "lerobot (default) or openpi");
  verb->add_option("--fallback", o->open.fallback,
                   "reference: ops that the backend lacks run there and are counted");
  verb->add_option("--out", o->out, "write the chunk to FILE.json or FILE.npy");
  verb->add_option("--plot", o->plot, "write a plot per joint to FILE.svg");
  verb->add_flag("--json", o->json, "one JSON object on standard output");
  verb->callback([o] { run(*o); });
}

}  // namespace tendon::cli
