// A backend against the reference, tensor by tensor, as the network names them: each is computed
// from the reference's values; then the whole policy runs end to end. Gates: docs/testing.md.
#pragma once

#include <algorithm>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tendon/opened.h"
#include "tensor/compare.h"

namespace tendon {

struct ModuleCheck {
  std::string module;  // "siglip.layer.0.mlp", "end_to_end.actions"; of judge_stage(): the stage
  Comparison apart;    // of the backend from the reference
  Bounds gate;         // of PCC and relative L2
  double asked = 0;    // PCC that tendon's founding documents ask for
  // What lies between the row before and this one took; none of a simulated device.
  std::optional<double> ms, reference_ms;
  std::string failed;                           // "PCC, relative L2"; empty: passed
  std::vector<std::pair<float, float>> sample;  // expected and got, evenly picked
  bool passed() const { return failed.empty(); }
};

struct Validation {
  std::string model, backend, method, precision;
  std::vector<ModuleCheck> checks;
  bool passed() const { return std::ranges::all_of(checks, &ModuleCheck::passed); }
};

// How far normalised actions may be off, by precision.
Bounds action_bounds(const std::string& precision);

// What validate_modules decides with: values of a module, as many of each.
ModuleCheck judge(const std::string& module, const Bounds& gate, std::span<const float> got,
                  std::span<const float> expected);

struct ModuleChoice {
  std::string only;         // modules whose name begins with it; empty: all
  bool all_layers = false;  // else the first and the last of each tower
};

// Both engines hold the same model. Throws Error(Fault::usage) with the nearest name when there is
// no such module, Error(Fault::input) for a bad observation.
Validation validate_modules(OpenedEngine& tested, OpenedEngine& reference,
                            const Observation& observation, const ModuleChoice& choice = {});

// One call, and what its stages computed: siglip, prefix, the keys and values of the last layer,
// the velocity of the first Euler step, actions (normalised). In this order.
using Stages = std::vector<std::pair<std::string, std::vector<float>>>;
struct StagedActions {
  Actions actions;
  Stages stages;
};
StagedActions run_stages(OpenedEngine& engine, const Observation& observation,
                         const InferOptions& options);

// judge() of a stage with what it may differ by in `precision`; both have as many values.
ModuleCheck judge_stage(const std::string& stage, const std::string& precision,
                        std::span<const float> got, std::span<const float> expected);

// How the reference is opened beside a backend that runs in `precision`: synthetic weights are
// rounded to it.
OpenOptions reference_options(const OpenOptions& options, const std::string& precision);

// Opens `model` with `options` and on the reference, with the same weights, and compares the two on
// what `observe` gives for it. Throws as Engine::open and validate_modules do.
Validation validate_model(const std::string& model, const OpenOptions& options,
                          const std::function<Observation(Engine&)>& observe,
                          const ModuleChoice& choice = {});

// {backend, method, precision, modules: [{module, pcc, relative_l2, ..., passed}], passed}
nlohmann::json to_json(const Validation& validation);

// One self-contained HTML page with a picture per module.
std::string html_report(const Validation& validation, const std::string& heading);

}  // namespace tendon
