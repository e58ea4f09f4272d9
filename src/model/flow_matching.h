// The path that flow matching trains along: x(t) = t noise + (1 - t) actions, t from 1 (noise) to 0
// (actions); its velocity is noise - actions. Host helpers of training and of its comparisons.
#pragma once

#include <limits>
#include <span>
#include <vector>

#include "tensor/check.h"

namespace tendon {

inline double flow_alpha(double t) { return 1.0 - t; }  // share of the actions
inline double flow_sigma(double t) { return t; }        // share of the noise

// (alpha / sigma)^2; infinite at t = 0.
inline double flow_snr(double t) {
  const double ratio =
      flow_sigma(t) > 0 ? flow_alpha(t) / flow_sigma(t) : std::numeric_limits<double>::infinity();
  return ratio * ratio;
}

// Actions at time t. Throws Error(Fault::internal) for different lengths or t outside [0, 1].
inline std::vector<float> add_noise(std::span<const float> actions, std::span<const float> noise,
                                    double t) {
  ensure(actions.size() == noise.size() && t >= 0 && t <= 1, Fault::internal,
         "[add_noise] {} actions, {} values of noise, t {}", actions.size(), noise.size(), t);
  std::vector<float> x(actions.size());
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(flow_alpha(t) * actions[i] + flow_sigma(t) * noise[i]);
  return x;
}

}  // namespace tendon
