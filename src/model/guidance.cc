// Weights of guided real-time chunking, as in lerobot's RTCProcessor.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/pi0.h"
#include "tensor/check.h"

namespace tendon {

std::vector<float> guidance_weights(GuidanceSchedule schedule, int64_t delay,
                                    int64_t execution_horizon, int64_t leftover_rows,
                                    int64_t horizon) {
  ensure(delay >= 0 && execution_horizon >= 0, Fault::input,
         "guidance with a delay of {} and an execution horizon of {} rows", delay,
         execution_horizon);
  const int64_t end = std::min({execution_horizon, leftover_rows, horizon});
  const int64_t start = std::min(delay, end);
  std::vector<float> weights(static_cast<size_t>(horizon), 0.f);
  for (int64_t i = 0; i < end; ++i) {
    float& w = weights[static_cast<size_t>(i)];
    if (i < start || schedule == GuidanceSchedule::ones) {
      w = 1.f;
    } else if (schedule != GuidanceSchedule::zeros) {
      const double linear =
          1.0 - static_cast<double>(i - start + 1) / static_cast<double>(end - start + 1);
      const double bent = linear * std::expm1(linear) / (std::numbers::e - 1.0);
      w = static_cast<float>(schedule == GuidanceSchedule::exp ? bent : linear);
    }
  }
  return weights;
}

float guidance_strength(float time, float max_weight) {
  const double tau = 1.0 - static_cast<double>(time), rest = static_cast<double>(time);
  if (tau <= 0.0) return max_weight;
  const double strength = rest / tau * ((rest * rest + tau * tau) / (rest * rest));
  return static_cast<float>(std::min(strength, static_cast<double>(max_weight)));
}

}  // namespace tendon
