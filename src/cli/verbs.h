// One function per verb: adds its options to the command line and says what to do when it is
// chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tendon/tendon.h"

namespace tendon::cli {

using AddVerb = void(CLI::App& app);
AddVerb add_bench, add_certify, add_convert, add_coverage, add_demo, add_doctor, add_inspect,
    add_replay, add_run, add_serve, add_tune, add_validate, add_velocity, add_version;

// MODEL, optional where `model` holds a default, and the options that decide how it is opened; both
// must outlive the parse.
void add_model_options(CLI::App& verb, std::string& model, OpenOptions& options);

// Those of them that say which device it is.
void add_device_options(CLI::App& verb, OpenOptions& options);

// The observation that the command line describes.
struct GivenObservation {
  std::vector<std::string> images;  // NAME=FILE
  std::string state;                // numbers or a file
  std::optional<std::string> prompt;
};

// --image, --prompt and --state.
void add_observation_options(CLI::App& verb, GivenObservation& given);

// Demo and synthetic models come with an observation; every other model must be given one, or,
// where any will do, `fill` takes what is missing from the embedded one.
Observation observe(const std::string& model, const GivenObservation& given, const Engine& engine,
                    bool fill = false);

// A verb, and the struct of its options, with which it calls `run`. What several verbs take, they
// get by the names of its members: `model` and `open`, `given`, `infer`, `json`.
template <class Options, class Run>
std::pair<CLI::App&, Options&> add_verb(CLI::App& app, const char* name, const char* what,
                                        Run run) {
  CLI::App* verb = app.add_subcommand(name, what);
  const auto o = std::make_shared<Options>();
  if constexpr (requires { o->model; }) add_model_options(*verb, o->model, o->open);
  if constexpr (requires { o->given; }) add_observation_options(*verb, o->given);
  if constexpr (requires { o->infer; })
    verb->add_option("--steps", o->infer.steps, "Euler steps; default: the model's own");
  if constexpr (requires { o->json; })
    verb->add_flag("--json", o->json, "one JSON object on standard output");
  verb->callback([o, run] { run(*o); });
  return {*verb, *o};
}

// Text that quotes a file, cut and without what would clear a terminal.
std::string printable(std::string_view text);

// The first line of --api-key-file. Fault::usage when there is none.
std::string read_key(const std::string& path);

}  // namespace tendon::cli
