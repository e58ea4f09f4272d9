// tendon coverage: which ops ran where, by class of op and by module of the policy.
#include "validate/coverage.h"

#include <fmt/format.h>

#include "cli/chunk_files.h"
#include "cli/observation.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct CoverageOptions {
  std::string model = "demo", expect, write;
  OpenOptions open;
  InferOptions infer;
  GivenObservation given;
  int64_t warm_up = 2;  // a device that records plays its recording from the third call on
  bool layers = false, json = false;
};

// A number, or null where there is none.
Json known(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

std::optional<double> ratio(double part, double whole) {
  return whole > 0 ? std::optional(part / whole) : std::nullopt;
}

Json to_json(const AuditSum& s, const AuditSum& total) {
  const auto flops = static_cast<double>(s.flops());
  return {{"calls", s.calls()},
          {"device", s.device_calls},
          {"host", s.host_calls},
          {"device_share", known(s.device_share())},
          {"ms", known(total.seconds > 0 ? std::optional(1e3 * s.seconds) : std::nullopt)},
          {"ms_share", known(ratio(s.seconds, total.seconds))},
          {"flops", s.flops()},
          {"flops_share", known(ratio(flops, static_cast<double>(total.flops())))},
          {"flops_on_device_share", known(s.device_flops_share())},
          {"gflop_per_s", known(flops > 0 ? ratio(1e-9 * flops, s.seconds) : std::nullopt)},
          {"bytes", s.bytes},
          {"uploads", s.ups},
          {"downloads", s.downs},
          {"bytes_up", s.bytes_up},
          {"bytes_down", s.bytes_down}};
}

Json to_json(const AuditEntry& e) {
  return {{"module", name(e.module)},
          {"layer", e.layer < 0 ? Json() : Json(e.layer)},
          {"op", e.call.name},
          {"class", name(e.call.op_class)},
          {"where", e.device ? "device" : "host"},
          {"provider", e.provider},
          {"dtype", e.call.dtype},
          {"ms", e.call.seconds > 0 ? Json(1e3 * e.call.seconds) : Json()},
          {"flops", e.call.flops},
          {"bytes_read", e.call.bytes_read},
          {"bytes_written", e.call.bytes_written},
          {"uploads", e.ups},
          {"downloads", e.downs},
          {"bytes_up", e.call.bytes_up},
          {"bytes_down", e.call.bytes_down}};
}

Json to_json(const CoverageOptions& o, const Engine& engine, const Audit& audit, const Actions& a) {
  const AuditSum total = audit.total();
  Json json{{"model", o.model},
            {"backend", engine.backend()},
            {"method", engine.method()},
            {"replayed", audit.replayed()},
            {"total", to_json(total, total)},
            {"transfers_between_steps", audit.transfers_between_steps()},
            {"flops_skipped", a.work.skipped_flops},
            {"version", version()}};
  for (int i = 0; i < kOpClassCount; ++i) {
    const auto c = static_cast<OpClass>(i);
    json["by_class"][std::string(name(c))] = to_json(audit.of(c), total);
  }
  for (int i = 0; i < kModuleCount; ++i) {
    const auto m = static_cast<Module>(i);
    json["by_module"][std::string(name(m))] = to_json(audit.of(m), total);
  }
  for (const auto& [layer, sum] : audit.layers()) json["by_layer"][layer] = to_json(sum, total);
  for (const AuditEntry& e : audit.entries) json["calls"].push_back(to_json(e));
  return json;
}

std::string coverage_text(const Json& json, bool layers) {
  const std::string columns =
      " {} | calls {calls:d} | device {device:d} | host {host:d} | on device {device_share:.1%} | "
      "ms {ms:.3f} | of ms {ms_share:.1%} | of FLOPs {flops_share:.2%} | GFLOP/s "
      "{gflop_per_s:.1f} | MB {bytes:.2M} | up {uploads:d} | down {downloads:d}";
  Json classes = json.at("by_class");
  classes["all"] = json.at("total");
  const std::string replayed = json.at("replayed").get<bool>()
                                   ? "replayed from a recording, whose ops have no times of their "
                                     "own; --warm-up 0 audits them one by one\n"
                                   : "";
  return lines("backend {backend} ({method})", json) + replayed + "\n" +
         table("op class" + columns, classes) + "\n" +
         table("module" + columns, json.at("by_module")) +
         (layers ? "\n" + table("layer" + columns, json.at("by_layer")) : "") +
         lines(
             "\nFLOPs on the device {total/flops_on_device_share:.3%} · uploads {total/uploads} "
             "({total/bytes_up:.1k} kB) · downloads {total/downloads} ({total/bytes_down:.1k} "
             "kB) · between denoising steps {transfers_between_steps}",
             json);
}

void coverage(CoverageOptions o) {
  if (!o.open.host_modules.empty() && o.open.fallback.empty()) o.open.fallback = "reference";
  Engine engine = Engine::open(o.model, o.open);
  const Observation observation = observe(o.model, o.given, engine, true);
  ensure(o.warm_up >= 0, Fault::usage, "--warm-up {}: at least 0", o.warm_up);
  Actions last;
  const Audit audit = audit_call(OpenedEngine::of(engine), observation, o.infer, o.warm_up, &last);
  const Json json = to_json(o, engine, audit, last);
  print_report(o.json, json, coverage_text(json, o.layers));
  const std::string found = expectation(audit);
  if (!o.write.empty())
    write_file(o.write, fmt::format("# module, call, place, times: tendon coverage {} --backend {}"
                                    "\n{}",
                                    o.model, engine.backend(), found));
  if (o.expect.empty()) return;
  const std::string changed = difference(read_text(o.expect, "--expect"), found);
  ensure(changed.empty(), Fault::verdict,
         "what ran is not what {} expects (- expected, + found; --write-expectation FILE renews "
         "it):\n{}",
         o.expect, changed);
}

}  // namespace

void add_coverage(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("coverage", "which ops ran where: calls, FLOPs, bytes, transfers");
  const auto o = std::make_shared<CoverageOptions>();
  add_model_options(*verb, o->model, o->open);
  add_observation_options(*verb, o->given);
  verb->add_option("--fallback", o->open.fallback,
                   "reference: ops that the backend lacks run there and are counted");
  verb->add_option("--host-modules", o->open.host_modules,
                   "modules that run on the host whatever the backend has, such as suffix,prefix")
      ->delimiter(',');
  verb->add_option("--steps", o->infer.steps, "Euler steps; default: the model's own");
  verb->add_option("--warm-up", o->warm_up, "calls before the audited one; default 2");
  verb->add_flag("--layers", o->layers, "a row per layer, too");
  verb->add_option("--expect", o->expect,
                   "compare with FILE (tests/coverage/BACKEND.txt); exit 1 when it differs");
  verb->add_option("--write-expectation", o->write, "write such a FILE");
  verb->add_flag("--json", o->json, "one JSON object on standard output, every call included");
  verb->callback([o] { coverage(*o); });
}

}  // namespace tendon::cli
