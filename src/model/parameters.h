// The complete list of a model's tensors: names and shapes of openpi's PyTorch conversion.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/weights.h"
#include "model/config.h"
#include "tensor/tensor.h"

namespace tendon {

// Where the published checkpoints keep each network.
inline const std::string kPaliGemma = "paligemma_with_expert.paligemma.";
inline const std::string kVision = kPaliGemma + "model.vision_tower.vision_model.";
inline const std::string kProjector = kPaliGemma + "model.multi_modal_projector.linear";
inline const std::string kLanguage = kPaliGemma + "model.language_model.";
inline const std::string kExpert = "paligemma_with_expert.gemma_expert.model.";

enum class Part { vision, projector, embedding, vlm, expert, heads };
std::string_view name(Part part);

struct Parameter {
  std::string name;
  Shape shape;
  Part part;
};

// In checkpoint order: vision, projector, embedding, VLM, expert, heads. 777 - 1 tensors for pi0 at
// full size (without the expert's unused lm_head).
std::vector<Parameter> parameters(const Config& config);

// Checks that every parameter is there in its shape, also those that inference never computes, and
// returns the names of tensors that belong to no parameter. Throws Error(Fault::checkpoint).
std::vector<std::string> check_parameters(WeightSource& source, const Config& config);

// Whether a tensor that is no parameter stands inside a module that has some ("q_proj.oft_r" beside
// "q_proj.weight"): whatever it is, the module was trained to compute something else.
bool alters_a_module(const std::string& unused, const Config& config);

}  // namespace tendon
