// tendon tune: what formats, fidelity and memory of a ttnn device do to accuracy and memory. Never
// to speed: the device is a model or a simulation.
#include <algorithm>

#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/backends.h"
#include "tensor/check.h"
#include "tensor/compare.h"

namespace tendon::cli {
namespace {

struct TuneOptions {
  std::string model = "demo";
  OpenOptions open{.backend = "ttnn"};
  InferOptions infer;
  GivenObservation given;
  bool json = false;
};

// What was given alone, else all of them.
std::vector<std::string> choices(const std::string& given, std::vector<std::string> all) {
  return given.empty() ? std::move(all) : std::vector{given};
}

Json tried(const TuneOptions& o, const OpenOptions& open, const Observation& observation,
           std::span<const float> expected) {
  Engine engine = Engine::open(o.model, open);
  ensure(engine.simulated(), Fault::usage,
         "tune: {} is a chip, whose speed decides as well: measure it with tendon bench",
         engine.method());
  const Comparison apart = tendon::compare(engine.infer(observation, o.infer).normalized, expected);
  return {{"precision", open.precision},
          {"fidelity", open.ttnn.fidelity},
          {"memory", open.ttnn.memory},
          {"pcc", apart.pcc},
          {"relative_l2", apart.relative_l2},
          {"max_error", apart.max_error},
          {"device_memory", memory_json(*engine.device_memory())}};
}

Json tune_json(const TuneOptions& o) {
  ensure(o.open.backend == "ttnn", Fault::usage, "--backend {}: tune is for ttnn", o.open.backend);
  Engine reference = Engine::open(o.model, moved_to(o.open, "reference"));
  const Observation observation = observe(o.model, o.given, reference, true);
  const std::vector<float> expected = reference.infer(observation, o.infer).normalized;
  std::vector<Json> rows;
  OpenOptions open = o.open;
  for (const std::string& precision :
       choices(o.open.precision,
               {"bf16", "bf16,siglip=bfp8", "bf16,vlm=bfp8", "bf16,expert=bfp8", "bfp8"}))
    for (const std::string& fidelity :
         choices(o.open.ttnn.fidelity, {"lofi", "hifi2", "hifi3", "hifi4"}))
      for (const std::string& memory : choices(o.open.ttnn.memory, {"dram", "auto", "l1"})) {
        open.precision = precision;
        open.ttnn.fidelity = fidelity;
        open.ttnn.memory = memory;
        rows.push_back(tried(o, open, observation, expected));
      }
  std::ranges::stable_sort(rows, {},
                           [](const Json& row) { return row.at("relative_l2").get<double>(); });
  return {{"model", o.model}, {"version", version()}, {"tried", rows}};
}

std::string tune_text(const Json& json) {
  return lines(
             "actions of {model} against the reference in f32, and memory of the device at its "
             "peak\n",
             json) +
         table(
             "precision {precision} | fidelity {fidelity} | memory {memory} | PCC {pcc:.7f} | "
             "relative L2 {relative_l2:.2e} | max error {max_error:.2e} | DRAM MB "
             "{device_memory/peak/dram:.2M} | L1 kB per core {device_memory/peak/l1_of_a_core:.0k}",
             json.at("tried"));
}

void tune(const TuneOptions& o) {
  const Json json = tune_json(o);
  print_report(o.json, json, tune_text(json));
}

}  // namespace

void add_tune(CLI::App& app) {
  add_verb<TuneOptions>(
      app, "tune",
      "tries formats, fidelity and memory of a simulated ttnn device: accuracy and memory, the "
      "most accurate first. What --precision, --fidelity or --memory say is kept",
      tune);
}

}  // namespace tendon::cli
