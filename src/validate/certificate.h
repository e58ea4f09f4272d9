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

// Reads all weights of `model`, which open_model() or this has opened, once; needs no backend.
ModelIdentity identify(const OpenedModel& model, const OpenOptions& options);
ModelIdentity identify(const std::string& model, const OpenOptions& options);

struct DimensionCheck {
  std::string name;       // of the action
  Comparison apart;       // in the robot's units, over all observations and rows
  double normal_rms = 0;  // root mean square of the difference of normalised actions
  double normal_rms_max = 0;
  bool passed() const { return normal_rms <= normal_rms_max; }
};

// The backend's actions beside those of one other implementation.
struct Compared {
  std::string against;
  std::vector<ModuleCheck> stages;          // farthest beyond or nearest to its gate first
  std::vector<DimensionCheck> dimensions;   // worst first
  std::vector<std::vector<double>> chunks;  // per observation, [rows, dim], in the robot's units
  bool passed() const;
};

struct Certificate {
  std::string model;
  ModelIdentity identity;
  std::string observations;  // how many and where from
  int64_t rows = 0, dim = 0;
  std::vector<std::string> action_names;    // as the chunks have them
  std::vector<std::vector<double>> chunks;  // the backend's
  std::vector<Compared> compared;           // the reference, then the oracle
  bool passed() const;
};

// Another implementation: its actions [rows, dim] in the robot's units of an observation with this
// noise [rows, model_dim], and those of run_stages() that it can tell, by their names.
struct Answered {
  std::vector<double> actions;
  Stages stages;
};
using Oracle =
    std::function<Answered(const Observation&, const std::vector<float>& noise, int64_t model_dim)>;

struct Certifying {
  int64_t count = 3;  // observations to draw; at least 1
  // Instead: those that the opened model is to see.
  std::function<std::vector<Observation>(Engine&)> observe;
  uint64_t seed = 0;  // of observations and noise
  Oracle oracle;      // beside the reference; may be absent
  std::string oracle_name;
};

// An observation within the statistics of `engine`: a state in q01..q99, or two standard deviations
// around the mean; pictures of the embedded observation, shifted.
Observation drawn_observation(const std::string& model, Engine& engine, uint64_t seed);

// Runs `model` with `options`, then the reference, then the oracle, one after the other: never two
// of them are in memory. Throws what they, Engine::open and Engine::infer do, and
// Error(Fault::input) for actions or stages of another size.
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
