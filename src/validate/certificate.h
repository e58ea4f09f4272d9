// What a backend makes of one checkpoint, beside the plain reference: how far its actions are off,
// in the robot's units, with a verdict that names its bounds, for exactly these weights.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tendon/opened.h"
#include "validate/modules.h"

namespace tendon {

// What a certificate is about. Fast hashes, 16 hexadecimal digits: they notice accidents, not a
// forger.
struct ModelIdentity {
  std::string weights, statistics, tokenizer;  // statistics: with everything else of the robot
  std::string backend, precision;
  std::string method, processor, version;  // may differ where a certificate is used
};

// Opens `model` without its backend and reads all of its weights once.
ModelIdentity identify(const std::string& model, const OpenOptions& options);

struct DimensionCheck {
  std::string name;       // of the action
  Comparison apart;       // in the robot's units, over all observations and rows
  double normal_rms = 0;  // root mean square of the difference of normalised actions
  double normal_rms_max = 0;
  bool passed() const { return normal_rms <= normal_rms_max; }
};

// The chunks of one observation, [rows, dim], in the robot's units.
struct ChunkPair {
  std::string prompt;
  std::vector<double> got, expected;
};

struct Certificate {
  std::string model;
  ModelIdentity identity;
  std::string against, observations;  // compared with what; how many and where from
  std::vector<ModuleCheck> stages;    // end to end, farthest beyond or nearest to its gate first
  std::vector<DimensionCheck> dimensions;  // worst first
  int64_t rows = 0, dim = 0;
  std::vector<std::string> action_names;  // as the chunks have them
  std::vector<ChunkPair> chunks;
  bool passed() const;
};

// Another implementation: the actions [rows, dim] of an observation with this noise
// [rows, model_dim], in the robot's units.
using Oracle = std::function<std::vector<double>(const Observation&, const std::vector<float>&)>;

struct Certifying {
  int64_t drawn = 3;                  // observations to draw where none is given; at least 1
  std::vector<Observation> recorded;  // instead
  uint64_t seed = 0;                  // of observations and noise
  std::string against = "the plain reference in f32";
  Oracle oracle;  // what `against` names; absent: the reference, with its stages
};

// An observation within the statistics of `engine`: a state in q01..q99, or two standard deviations
// around the mean; pictures of the embedded observation, shifted.
Observation drawn_observation(const std::string& model, Engine& engine, uint64_t seed);

// Runs `model` with `options`, and the oracle or the reference. Throws what they, Engine::open and
// Engine::infer do, and Error(Fault::input) for actions of another size.
Certificate certify(const std::string& model, const OpenOptions& options,
                    const Certifying& certifying);

nlohmann::ordered_json to_json(const Certificate& certificate);

// One self-contained HTML page: per action, both chunks over each other and their difference.
std::string html_page(const Certificate& certificate);

// Throws Error(Fault::verdict) when `certificate`, text that to_json() gave, is for another model,
// backend or precision than `now`, or its verdict is negative; Fault::usage when it is none.
// Returns what differs without making it void: the version, the method, the processor.
std::vector<std::string> check_certificate(const std::string& certificate,
                                           const ModelIdentity& now);

}  // namespace tendon
