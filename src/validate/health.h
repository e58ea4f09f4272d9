// The health of a checkpoint: everything about its files that would make a robot act wrongly or the
// engine refuse it, found in one reading and named by tensor, dimension, file or key.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tendon/types.h"

namespace tendon {

struct Finding {
  enum class Level { note, warning, error };
  Level level = Level::note;
  std::string check;    // "tensor.nan", "statistics.range", ...
  std::string subject;  // the tensor, dimension, file or key
  std::string text;     // one sentence: what, where, got, expected, what to do
};
std::string_view name(Finding::Level level);  // "note", "warning", "ERROR"

struct Health {
  std::vector<Finding> findings;
  int64_t tensors = 0, values = 0;  // whose numbers were read
  double seconds = 0;
  bool sound() const;  // no error
};

// Checks files, tensors and their values, statistics, tokenizer and configuration of `model` (as in
// Engine::open, opened with `options`), each as far as it can be read, whatever the others hold.
// Weights are read once, from the mapped files, and their pages given back: memory stays small.
// Synthetic weights are sound by construction and not generated. `observations`: JSON files with
// "state" (or "joint_position" and "gripper_position") and "cameras" of a robot; they are compared
// with the model's statistics and inputs. Faults of the model are findings; throws only for faults
// of the machine.
Health check_health(const std::string& model, const OpenOptions& options,
                    const std::vector<std::string>& observations);

// {sound, tensors, findings: [{level, check, subject, text}]}
nlohmann::json to_json(const Health& health);

}  // namespace tendon
