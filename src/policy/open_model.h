// From the name of a model to everything a policy needs: configuration, weights, policy spec.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/weights.h"
#include "model/config.h"
#include "policy/policy.h"
#include "tendon/types.h"

namespace tendon {

struct OpenedModel {
  std::string layout;  // "demo", "synthetic", "lerobot", "openpi" or "converted"
  Config config;
  std::unique_ptr<WeightSource> weights;
  PolicySpec spec;
  std::string tokenizer;              // where it came from; empty: there is none
  std::vector<std::string> notes;     // decisions taken, one sentence each; warnings among them
  std::vector<std::string> warnings;  // what may make actions other than those of the training
  std::vector<std::string> unused;    // tensors that belong to no parameter
  std::string precision;              // of weights that `tendon convert` packed; else empty
};

// So many cameras by the model's names, as in the published checkpoints.
std::vector<std::string> camera_slots(int64_t count);

// "demo", "demo:pi0" (the same) and "demo:pi05": the policies inside the library.
bool is_demo(const std::string& model);
std::string demo_folder(const std::string& model);  // "embedded:pi0" or "embedded:pi05"

// `model`: a demo, "synthetic:pi0", "synthetic:pi05", a checkpoint folder or a converted file.
// Every parameter of the model has been checked for presence and shape. Throws
// Error(Fault::checkpoint or usage).
OpenedModel open_model(const std::string& model, const OpenOptions& options);

// The tokenizer beside the weights of a folder, where lerobot and openpi users keep it; else empty.
std::string find_tokenizer(const std::string& model);

// Configuration, cameras, prompt, statistics, parameters by part with bytes, memory plan.
nlohmann::json describe_model(const OpenedModel& model, const OpenOptions& options,
                              bool table_on_device = false);

// The same sizes and robot as what tendon.json or --config FILE would say.
nlohmann::json tendon_json(const OpenedModel& model);

// An upper bound of what opening it with `options`, whose precision is given, takes.
// `table_on_device`: the backend keeps token embeddings in its own memory, as bf16.
MemoryPlan plan_memory(const OpenedModel& model, const OpenOptions& options,
                       bool table_on_device = false);

}  // namespace tendon
