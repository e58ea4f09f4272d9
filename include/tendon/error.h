// What can go wrong, and the exit code that the command line gives it.
#pragma once

#include <stdexcept>
#include <string>

namespace tendon {

// The values are the exit codes of the `tendon` command.
enum class Fault {
  verdict = 1,     // a comparison or check gave a negative verdict
  usage = 2,       // a wrong option, verb or configuration key
  checkpoint = 3,  // weights, configuration, statistics or tokenizer of a model
  input = 4,       // images, prompt, state or noise of one call
  backend = 5,     // backend or device missing, or an op it lacks
  memory = 6,      // the memory plan does not fit
  network = 7,
  internal = 70,
};

// The only exception the library throws on purpose. what() says what failed with the values, where
// (file, tensor, key, dimension), and what to do next.
class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& message) : std::runtime_error(message), fault_(fault) {}
  Fault fault() const { return fault_; }

 private:
  Fault fault_;
};

}  // namespace tendon
