// The observation that the command line describes.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tendon/tendon.h"

namespace tendon::cli {

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

}  // namespace tendon::cli
