// tendon validate: a backend against the reference, module by module, and a checkpoint's health.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/chunk_files.h"
#include "cli/recorded_examples.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tensor/check.h"
#include "validate/health.h"
#include "validate/modules.h"

namespace tendon::cli {
namespace {

struct ValidateOptions {
  std::string model = "synthetic:pi0-small", module, report, episodes;
  std::vector<std::string> observations;
  OpenOptions open;
  GivenObservation given;
  size_t examples = 50;
  bool health_only = false, all_layers = false, json = false;
};

void print(const Health& health) {
  for (const Finding& f : health.findings)
    fmt::print("{:8} {:24} {}\n", name(f.level), f.check, f.text);
  fmt::print("health: {} tensors, {:.3g} values read in {:.1f} s, {} findings: {}\n\n",
             health.tensors, static_cast<double>(health.values), health.seconds,
             health.findings.size(), health.sound() ? "sound" : "NOT SOUND");
}

void print(const Validation& v) {
  fmt::print("{} on {} ({}) against the reference\n", v.model, v.backend, v.method);
  fmt::print("{}",
             table("module {module} | PCC {pcc:.10f} | at least {gate:.10f} | asked {asked:.2f} "
                   "| relative L2 {relative_l2:.2e} | at most {relative_l2_gate:.2g} | max error "
                   "{max_error:.2e} | ms {ms:.3f} | reference ms {reference_ms:.3f} | "
                   "{passed:ok|FAILED} | {failed}",
                   Json(to_json(v)).at("modules")));
}

Json to_json(const FlowLoss& l) {
  Json buckets = Json::array();
  for (const LossAt& b : l.buckets)
    buckets.push_back({{"t", fmt::format("{:.1f} to {:.1f}", b.t_low, b.t_high)},
                       {"snr", b.snr},
                       {"loss", b.loss},
                       {"of_zero", b.of_zero},
                       {"ratio", b.loss / b.of_zero}});
  return {{"examples", l.examples},
          {"loss", l.loss},
          {"of_zero", l.of_zero},
          {"ratio", l.loss / l.of_zero},
          {"buckets", buckets}};
}

FlowLoss loss_on_episodes(const ValidateOptions& o) {
  Engine engine = Engine::open(o.model, o.open);
  const std::vector<Example> examples =
      recorded_examples(o.episodes, model_card(o.model, engine), o.examples);
  return flow_loss(*OpenedEngine::of(engine).policy, examples, 1);
}

std::string loss_text(const Json& loss) {
  return table(
             "t {t} | SNR {snr:.3g} | loss {loss:.4f} | of velocity 0 {of_zero:.4f} | ratio "
             "{ratio:.3f}",
             loss.at("buckets")) +
         lines(
             "flow matching loss {loss:.4f} on {examples} examples, {ratio:.3f} of that of a "
             "velocity of 0",
             loss);
}

void validate(const ValidateOptions& o) {
  const Health health = check_health(o.model, o.open, o.observations);
  nlohmann::json json{{"model", o.model}, {"health", to_json(health)}, {"version", version()}};
  if (!o.json) print(health);
  Validation v;
  FlowLoss loss{.of_zero = 1};
  // A checkpoint that is not sound cannot be opened.
  if (!o.episodes.empty() && health.sound()) {
    loss = loss_on_episodes(o);
    json["flow_matching"] = to_json(loss);
    if (!o.json) fmt::print("{}\n", loss_text(to_json(loss)));
  } else if (!o.health_only && health.sound()) {
    v = validate_model(
        o.model, o.open,
        [&o](const Engine& engine) { return observe(o.model, o.given, engine, true); },
        {o.module, o.all_layers});
    json.update(to_json(v));
    if (!o.json) print(v);
    if (!o.report.empty())
      write_file(o.report, html_report(v, fmt::format("{} on {} ({}), tendon {}", v.model,
                                                      v.backend, v.method, version())));
  }
  if (o.json) fmt::print("{}\n", json.dump());
  ensure(health.sound(), Fault::verdict, "{} is not sound", o.model);
  ensure(v.passed(), Fault::verdict, "modules beyond their gate");
  ensure(loss.fits(), Fault::verdict,
         "these episodes are as far from the policy as from no policy at all: are robot, units, "
         "order, prompt and statistics those of the training?");
}

}  // namespace

void add_validate(CLI::App& app) {
  const auto [verb, o] = add_verb<ValidateOptions>(
      app, "validate",
      "a checkpoint's health, and a backend against the reference module by module", validate);
  verb.add_option("--module", o.module,
                  "only modules whose name begins with it: siglip, vlm.layer.0.mlp");
  verb.add_flag("--all-layers", o.all_layers, "not only the first and the last of each tower");
  verb.add_flag("--health-only", o.health_only, "do not run the model");
  verb.add_option("--observations", o.observations,
                  "recorded observations (JSON) whose states should lie in the statistics");
  verb.add_option("--loss", o.episodes,
                  "instead of the modules: the flow matching loss on the episodes in DIR, which "
                  "tendon serve --record or examples/dataset_to_recording.py wrote");
  verb.add_option("--examples", o.examples, "how many of them; default 50")
      ->check(CLI::Range(1, 100000));
  verb.add_option("--report", o.report, "write FILE.html with a picture per module");
}

}  // namespace tendon::cli
