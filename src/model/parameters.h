// What the tensors of a checkpoint tell about its model, and whether they are all there.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/weights.h"
#include "model/config.h"
#include "model/weights.h"

namespace tendon {

// pi0 or pi0.5 by the tensors that only one of them has, and every size that the tensors' shapes
// tell; where they contradict each other, what most of them say. What they cannot tell keeps a
// documented default: vision heads of 72 columns (16 at full size), one key/value head, three
// cameras, horizon, step count, token limit and periods of the full-size model. `heads_known`: the
// caller overrides heads afterwards, so that a vision width without heads of 72 is no error. Throws
// Error(Fault::checkpoint) where the source has the tensors of neither kind, or lacks a whole
// tower.
Config config_from_weights(const WeightSource& source, bool heads_known = false,
                           const OnProblem& on_problem = refuse);

// Checks that every parameter is there in its shape, also those that inference never computes, and
// returns the names of tensors that belong to no parameter.
std::vector<std::string> check_parameters(const WeightSource& source, const Config& config,
                                          const OnProblem& on_problem = refuse);

// Whether a tensor that is no parameter looks trained: it stands inside a module that has
// parameters ("q_proj.oft_r" beside "q_proj.weight") or in a layer, or its name says so. Whatever
// it is, the model was trained to compute something else.
bool alters_a_module(const std::string& unused, const Config& config);

}  // namespace tendon
