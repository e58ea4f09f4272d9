// What this machine can run, and what is missing for the rest.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "tendon/types.h"

namespace tendon {

// Looks at processor, memory, devices and, with options.ttnn_python and ttnn_sim, at the TTNN
// library and its simulator. Starts at most one interpreter; opens no device. {version, machine:
// [{what, there, found, get}], tests: [{name, runs, why}]}, the tests being the kinds of this
// project: "host", "chip", "cuda", ...
nlohmann::ordered_json examine_machine(const OpenOptions& options);

}  // namespace tendon
