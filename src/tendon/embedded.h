// Observations that are built into the library.
#pragma once

#include <optional>
#include <string>

#include "tendon/tendon.h"

namespace tendon {

// A real observation: an ALOHA robot in simulation, three cameras, 14 joints.
Observation aloha_observation();

// What comes with a model: demo_observation() with the demos, aloha_observation() with synthetic
// ones; with any other nothing or, if `any`, aloha_observation(), too. As `engine` takes it: with
// its names of cameras, as many pictures as it has cameras and as many state values.
std::optional<Observation> observation_for(const std::string& model, const Engine& engine,
                                           bool any);

}  // namespace tendon
