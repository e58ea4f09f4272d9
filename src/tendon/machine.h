// What this machine can run, and what is missing for the rest.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tendon/types.h"

namespace tendon {

struct MachineFact {
  std::string what;  // "instruction sets", "TTNN library"
  bool there = false;
  std::string found;  // what was seen, with numbers; of a test how it is run, or why it cannot be
  std::string get;    // how to get it, one line; empty where there is nothing to do
};

struct Machine {
  std::vector<MachineFact> facts;
  std::vector<MachineFact> tests;  // kinds of tests of this project: "host", "chip", "cuda", ...
};

// Looks at processor, memory, devices and, with options.ttnn_python and ttnn_sim, at the TTNN
// library and its simulator. Starts at most one interpreter; opens no device.
Machine examine_machine(const OpenOptions& options);

// {version, machine: [{what, there, found, get}], tests: [{name, runs, why}]}
nlohmann::ordered_json to_json(const Machine& machine);

}  // namespace tendon
