// What readers of checkpoints say about faults.
#pragma once

#include <functional>
#include <string>

#include "tendon/error.h"

namespace tendon {

// Something wrong in a checkpoint. Readers tell of each one and go on: where a model is opened the
// first is thrown (`refuse`), `tendon validate` collects them all.
struct Problem {
  std::string check;    // "tensor.missing", "tensor.shape", ...
  std::string subject;  // the tensor, file or key
  std::string text;     // one sentence: what, where, got, expected, what to do
};
using OnProblem = std::function<void(const Problem&)>;

[[noreturn]] inline void refuse(const Problem& problem) {
  throw Error(Fault::checkpoint, problem.text);
}

}  // namespace tendon
