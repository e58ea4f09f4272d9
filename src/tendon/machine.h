// What this machine can run, and what is missing for the rest.
#pragma once

#include <string>
#include <vector>

#include "tendon/types.h"

namespace tendon {

struct MachineFact {
  std::string what;  // "instruction sets", "TTNN library"
  bool there = false;
  std::string found;  // what was seen, with numbers
  std::string get;    // how to get it, one line; empty where there is nothing to do
};

// A kind of test of this project and whether it can run here.
struct TestTier {
  std::string name;  // "host", "fake device", "simulator", "full size", "chip", "cuda"
  bool runs = false;
  std::string why;  // how it is run, or why it cannot be
};

struct Machine {
  std::vector<MachineFact> facts;
  std::vector<TestTier> tiers;
};

// Looks at processor, memory, devices and, with options.ttnn_python and ttnn_sim, at the TTNN
// library and its simulator. Starts at most one interpreter; opens no device.
Machine examine_machine(const OpenOptions& options);

}  // namespace tendon
