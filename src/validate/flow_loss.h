// How well a policy fits recorded episodes: the loss that flow matching trains on. A checkpoint
// whose robot, units, order or prompt are not those of the data shows a loss near that of no
// policy at all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policy/policy.h"

namespace tendon {

struct Example {
  Observation observation;
  std::vector<double> actions;  // what was done from there on: [rows, dim] in the robot's units
};

// Mean of (v - (noise - actions))^2 over the robot's dims of the rows that an example has, both
// normalised.
struct LossAt {
  double t_low = 0, t_high = 0;  // each example has one draw of noise and t in here
  double snr = 0;                // (actions / noise)^2 in the middle of it
  double loss = 0;
  double of_zero = 0;  // what a velocity of 0 would have
};

struct FlowLoss {
  int64_t examples = 0;
  std::vector<LossAt> buckets;  // five, from t = 0 (actions) to 1 (noise)
  double loss = 0, of_zero = 0;
  bool fits() const { return loss < of_zero; }
};

// Throws what Policy::infer() and Policy::to_model() throw, and Error(Fault::input) without an
// example. The same seed gives the same noise and times.
FlowLoss flow_loss(Policy& policy, std::span<const Example> examples, uint64_t seed);

}  // namespace tendon
