// tendon velocity: the network's one forward pass, at any time between noise and actions.
#include <fmt/format.h>

#include <cmath>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct VelocityOptions {
  std::string model, noisy, out;
  OpenOptions open;
  GivenObservation given;
  double t = 1;
  bool json = false;
};

void velocity(const VelocityOptions& o) {
  const std::vector<double> given = read_numbers(o.noisy, "--noisy");
  const std::vector<float> noisy(given.begin(), given.end());
  Engine engine = Engine::open(o.model, o.open);
  const std::vector<float> v = engine.velocity(observe(o.model, o.given, engine), noisy, o.t);
  const Actions rows{.horizon = engine.horizon(),
                     .dim = engine.model_dim(),
                     .values = std::vector<double>(v.begin(), v.end())};
  std::vector<std::string> names;
  for (int64_t d = 0; d < rows.dim; ++d) names.push_back(fmt::format("velocity_{}", d));
  if (!o.out.empty()) write_actions(o.out, rows, names);
  double squares = 0;
  for (const double value : rows.values) squares += value * value;
  const Json json{{"model", o.model},
                  {"backend", engine.backend()},
                  {"method", engine.method()},
                  {"t", o.t},
                  {"horizon", rows.horizon},
                  {"dim", rows.dim},
                  {"rms", std::sqrt(squares / static_cast<double>(rows.values.size()))},
                  {"velocity", rows_of(rows)}};
  print_report(o.json, json,
               lines("velocity [{horizon}, {dim}] at t = {t}: root mean square {rms:.5f}", json));
}

}  // namespace

void add_velocity(CLI::App& app) {
  const auto [verb, o] = add_verb<VelocityOptions>(
      app, "velocity", "the model's velocity at noisy actions and a time: one forward pass",
      velocity);
  verb.add_option("--noisy", o.noisy,
                  "normalised actions, horizon x the model's action dims: .json or .npy")
      ->required();
  verb.add_option("--t", o.t, "from 1 (noise, the default) to 0 (actions)");
  verb.add_option("--out", o.out, "write the velocity to FILE.json or FILE.npy");
}

}  // namespace tendon::cli
