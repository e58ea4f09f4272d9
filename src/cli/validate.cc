// tendon validate: a backend against the reference, module by module, and a checkpoint's health.
#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "cli/chunk_files.h"
#include "cli/observation.h"
#include "cli/verbs.h"
#include "tensor/check.h"
#include "validate/health.h"
#include "validate/modules.h"

namespace tendon::cli {
namespace {

struct ValidateOptions {
  std::string model = "synthetic:pi0-small", module, report;
  std::vector<std::string> observations;
  OpenOptions open;
  GivenObservation given;
  bool health_only = false, all_layers = false, json = false;
};

std::string_view word(Finding::Level level) {
  return std::array{"note", "warning", "ERROR"}.at(static_cast<size_t>(level));
}

void print(const Health& health) {
  for (const Finding& f : health.findings)
    fmt::print("{:8} {:24} {}\n", word(f.level), f.check, f.text);
  fmt::print("health: {} tensors, {:.3g} values read in {:.1f} s, {} findings: {}\n\n",
             health.tensors, static_cast<double>(health.values), health.seconds,
             health.findings.size(), health.sound() ? "sound" : "NOT SOUND");
}

void print(const Validation& v) {
  fmt::print("{} on {} ({}) against the reference\n", v.model, v.backend, v.method);
  fmt::print("{:32} {:>12} {:>12} {:>11} {:>9} {:>10}\n", "module", "PCC", "at least",
             "relative L2", "at most", "max error");
  for (const ModuleCheck& c : v.checks)
    fmt::print("{:32} {:12.10f} {:12.10f} {:11.2e} {:9.2g} {:10.2e} {}{}\n", c.module, c.apart.pcc,
               c.gate.pcc, c.apart.relative_l2, c.gate.relative_l2, c.apart.max_error,
               c.failed.empty() ? "ok" : "FAILED: ", c.failed);
}

nlohmann::json to_json(const Health& health) {
  nlohmann::json findings = nlohmann::json::array();
  for (const Finding& f : health.findings)
    findings.push_back(
        {{"level", word(f.level)}, {"check", f.check}, {"subject", f.subject}, {"text", f.text}});
  return {{"sound", health.sound()}, {"tensors", health.tensors}, {"findings", findings}};
}

nlohmann::json to_json(const Validation& v) {
  nlohmann::json modules = nlohmann::json::array();
  for (const ModuleCheck& c : v.checks)
    modules.push_back({{"module", c.module},
                       {"pcc", c.apart.pcc},
                       {"max_error", c.apart.max_error},
                       {"relative_l2", c.apart.relative_l2},
                       {"scale", c.apart.scale},
                       {"gate", c.gate.pcc},
                       {"relative_l2_gate", c.gate.relative_l2},
                       {"failed", c.failed},
                       {"passed", c.failed.empty()}});
  return {{"backend", v.backend},
          {"method", v.method},
          {"precision", v.precision},
          {"modules", modules},
          {"passed", v.passed()}};
}

Validation compare_modules(const ValidateOptions& o) {
  Engine tested = Engine::open(o.model, o.open);
  OpenOptions plain = o.open;
  plain.backend = "reference";
  // Synthetic weights are rounded to the policy's format: both sides must hold the same ones.
  plain.precision = OpenedEngine::of(tested).options.precision == "bf16" ? "bf16" : "f32";
  plain.host_modules.clear();
  plain.progress = {};
  Engine reference = Engine::open(o.model, plain);
  const Observation observation = observe(o.model, o.given, reference, true);
  Validation v = validate_modules(OpenedEngine::of(tested), OpenedEngine::of(reference),
                                  observation, {o.module, o.all_layers});
  v.model = o.model;
  return v;
}

void validate(const ValidateOptions& o) {
  const Health health = check_health(o.model, o.open, o.observations);
  nlohmann::json json{{"model", o.model}, {"health", to_json(health)}, {"version", version()}};
  if (!o.json) print(health);
  Validation v;
  // A checkpoint that is not sound cannot be opened.
  if (!o.health_only && health.sound()) {
    v = compare_modules(o);
    json.update(to_json(v));
    if (!o.json) print(v);
    if (!o.report.empty())
      write_file(o.report, html_report(v, fmt::format("{} on {} ({}), tendon {}", v.model,
                                                      v.backend, v.method, version())));
  }
  if (o.json) fmt::print("{}\n", json.dump());
  ensure(health.sound(), Fault::verdict, "{} is not sound", o.model);
  ensure(v.passed(), Fault::verdict, "modules beyond their gate");
}

}  // namespace

void add_validate(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "validate", "a checkpoint's health, and a backend against the reference module by module");
  const auto o = std::make_shared<ValidateOptions>();
  add_model_options(*verb, o->model, o->open);
  add_observation_options(*verb, o->given);
  verb->add_option("--module", o->module,
                   "only modules whose name begins with it: siglip, vlm.layer.0.mlp");
  verb->add_flag("--all-layers", o->all_layers, "not only the first and the last of each tower");
  verb->add_flag("--health-only", o->health_only, "do not run the model");
  verb->add_option("--observations", o->observations,
                   "recorded observations (JSON) whose states should lie in the statistics");
  verb->add_option("--report", o->report, "write FILE.html with a picture per module");
  verb->add_flag("--json", o->json, "one JSON object on standard output");
  verb->callback([o] { validate(*o); });
}

}  // namespace tendon::cli
