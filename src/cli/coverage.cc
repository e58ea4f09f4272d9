// tendon coverage: which ops ran where, by class of op and by module of the policy.
#include "validate/coverage.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <sstream>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/backends.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct CoverageOptions {
  std::string model = "demo", expect, write, against;
  OpenOptions open;
  InferOptions infer;
  GivenObservation given;
  int64_t warm_up = 2;  // a device that records plays its recording from the third call on
  bool layers = false, json = false;
};

// A number, or null where there is none.
Json known(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json ratio(double part, double whole) { return whole > 0 ? Json(part / whole) : Json(); }

Json to_json(const AuditSum& s, const AuditSum& total) {
  const auto flops = static_cast<double>(s.flops());
  return {{"calls", s.calls()},
          {"device", s.device_calls},
          {"host", s.host_calls},
          {"device_share", known(s.device_share())},
          {"ms", total.seconds > 0 ? Json(1e3 * s.seconds) : Json()},
          {"ms_share", ratio(s.seconds, total.seconds)},
          {"flops", s.flops()},
          {"flops_share", ratio(flops, static_cast<double>(total.flops()))},
          {"flops_on_device_share", known(s.device_flops_share())},
          {"gflop_per_s", flops > 0 ? ratio(1e-9 * flops, s.seconds) : Json()},
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
  if (const auto memory = engine.device_memory()) json["device_memory"] = memory_json(*memory);
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
  const StageTimes& t = a.times;
  for (const auto& [what, ms] : {std::pair("pictures to patches, upload", t.pictures_ms),
                                 {"state and tokens", t.prompt_ms},
                                 {"noise, previous chunk", t.noise_ms},
                                 {"tables of times (first call)", t.tables_ms},
                                 {"actions to the robot", t.postprocess_ms}})
    json["host_work"][what]["ms"] = engine.simulated() ? Json() : Json(ms);
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
         (layers ? "\n" + table("layer" + columns, json.at("by_layer")) : "") + "\n" +
         table("host work, no op {} | ms {ms:.3f}", json.at("host_work")) +
         lines(
             "\nFLOPs on the device {total/flops_on_device_share:.3%} · uploads {total/uploads} "
             "({total/bytes_up:.1k} kB) · downloads {total/downloads} ({total/bytes_down:.1k} "
             "kB) · between denoising steps {transfers_between_steps}",
             json) +
         lines(kDeviceMemoryLines, json);
}

// One engine, opened so, and its audited call.
struct Audited {
  Json json;
  std::string expectation;
};

Audited audited(const CoverageOptions& o, OpenOptions open) {
  if (!open.host_modules.empty() && open.fallback.empty()) open.fallback = "reference";
  Engine engine = Engine::open(o.model, open);
  const Observation observation = observe(o.model, o.given, engine, true);
  Actions last;
  const Audit audit = audit_call(OpenedEngine::of(engine), observation, o.infer, o.warm_up, &last);
  return {to_json(o, engine, audit, last), expectation(audit)};
}

int64_t bytes_moved(const Json& sum) {
  return sum.at("bytes_up").get<int64_t>() + sum.at("bytes_down").get<int64_t>();
}

// Of a class, a module or all: before beside after.
Json beside(const Json& before, const Json& after) {
  Json row;
  for (const char* key : {"device_share", "ms", "uploads", "downloads"})
    row[key] = {{"before", before.at(key)}, {"after", after.at(key)}};
  row["bytes_moved"] = {{"before", bytes_moved(before)}, {"after", bytes_moved(after)}};
  return row;
}

Json beside_json(const Json& before, const Json& after) {
  Json json{{"backend", after.at("backend")},
            {"method", after.at("method")},
            {"transfers_between_steps", after.at("transfers_between_steps")},
            {"total", beside(before.at("total"), after.at("total"))}};
  for (const char* parts : {"by_class", "by_module"})
    for (const auto& [name, sum] : before.at(parts).items())
      json[parts][name] = beside(sum, after.at(parts).at(name));
  return json;
}

// What each module costs on the host: the dearest first, by time where there is one, else by bytes.
Json ranking(const CoverageOptions& o, const Json& before) {
  const Json& total = before.at("total");
  std::vector<Json> rows;
  for (const auto& [module, sum] : before.at("by_module").items()) {
    if (sum.at("calls") == 0) continue;
    OpenOptions open = o.open;
    open.host_modules = {module};
    const Json after = audited(o, open).json.at("total");
    const auto more = [&](const char* key) {
      return after.at(key).get<double>() - total.at(key).get<double>();
    };
    const bool timed = !after.at("ms").is_null() && !total.at("ms").is_null();
    rows.push_back({{"module", module},
                    {"device_share", after.at("device_share")},
                    {"transfers", static_cast<int64_t>(more("uploads") + more("downloads"))},
                    {"bytes", bytes_moved(after) - bytes_moved(total)},
                    {"ms", timed ? Json(more("ms")) : Json()}});
  }
  std::ranges::sort(rows, std::greater{}, [](const Json& row) {
    return std::pair(row.at("ms").is_null() ? 0. : row.at("ms").get<double>(),
                     row.at("bytes").get<int64_t>());
  });
  return rows;
}

std::string against_text(const Json& json) {
  if (json.contains("ranking"))
    return "\n" + table(
                      "on the host {module} | on device {device_share:.1%} | more ms {ms:.3f} | "
                      "more transfers {transfers:d} | more kB moved {bytes:.1k}",
                      json.at("ranking"));
  const std::string columns =
      " {} | on device {device_share/before:.1%} | after {device_share/after:.1%} | ms "
      "{ms/before:.3f} | after {ms/after:.3f} | up {uploads/before:d} | after {uploads/after:d} | "
      "down {downloads/before:d} | after {downloads/after:d} | kB moved {bytes_moved/before:.1k} | "
      "after {bytes_moved/after:.1k}";
  const Json& after = json.at("after");
  Json classes = after.at("by_class");
  classes["all"] = after.at("total");
  return lines(
             "\nagainst {against}: {after/backend} ({after/method}), between denoising steps "
             "{after/transfers_between_steps}\n",
             json) +
         table("op class" + columns, classes) + "\n" +
         table("module" + columns, after.at("by_module"));
}

// "host:MODULE,...", "host:each", or another backend.
void add_comparison(const CoverageOptions& o, Json& json) {
  json["against"] = o.against;
  if (o.against == "host:each") {
    json["ranking"] = ranking(o, json);
    return;
  }
  OpenOptions open = o.open;
  if (o.against.starts_with("host:")) {
    open.host_modules.clear();
    std::istringstream modules(o.against.substr(5));
    for (std::string module; std::getline(modules, module, ',');)
      open.host_modules.push_back(module);
    ensure(!open.host_modules.empty(), Fault::usage,
           "--against {}: name modules, such as host:suffix,siglip, or host:each", o.against);
  } else {
    open = moved_to(open, o.against);
  }
  json["after"] = beside_json(json, audited(o, open).json);
}

void coverage(const CoverageOptions& o) {
  ensure(o.warm_up >= 0, Fault::usage, "--warm-up {}: at least 0", o.warm_up);
  auto [json, found] = audited(o, o.open);
  if (!o.against.empty()) add_comparison(o, json);
  print_report(o.json, json,
               coverage_text(json, o.layers) + (o.against.empty() ? "" : against_text(json)));
  if (!o.write.empty())
    write_file(o.write, fmt::format("# module, call, place, times: tendon coverage {} --backend {}"
                                    "\n{}",
                                    o.model, json.at("backend").get<std::string>(), found));
  if (o.expect.empty()) return;
  const std::string changed = difference(read_text(o.expect, "--expect"), found);
  ensure(changed.empty(), Fault::verdict,
         "what ran is not what {} expects (- expected, + found; --write-expectation FILE renews "
         "it):\n{}",
         o.expect, changed);
}

}  // namespace

void add_coverage(CLI::App& app) {
  const auto [verb, o] = add_verb<CoverageOptions>(
      app, "coverage", "which ops ran where: calls, FLOPs, bytes, transfers", coverage);
  verb.add_option("--fallback", o.open.fallback,
                  "reference: ops that the backend lacks run there and are counted");
  verb.add_option(
          "--host-modules", o.open.host_modules,
          "modules that run on the host whatever the backend has, such as suffix,prefix; or all")
      ->delimiter(',');
  verb.add_option("--warm-up", o.warm_up, "calls before the audited one; default 2");
  verb.add_flag("--layers", o.layers, "a row per layer, too");
  verb.add_option("--against", o.against,
                  "before beside after: host:suffix,siglip (these on the host), host:each (the "
                  "modules ranked by what that costs), or another backend");
  verb.add_option("--expect", o.expect,
                  "compare with FILE (tests/coverage/BACKEND.txt); exit 1 when it differs");
  verb.add_option("--write-expectation", o.write, "write such a FILE");
  verb.get_option("--json")->description("one JSON object, every call included");
}

}  // namespace tendon::cli
