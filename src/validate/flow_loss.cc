#include "validate/flow_loss.h"

#include <algorithm>
#include <functional>

#include "model/flow_matching.h"
#include "tensor/check.h"
#include "tensor/random.h"

namespace tendon {
namespace {

constexpr int64_t kBuckets = 5;

// Mean over the first rows and dims of both.
double mean_square(std::span<const float> got, std::span<const float> expected,
                   const Config& config, const Shape& counted) {
  double sum = 0;
  for (int64_t r = 0; r < counted[0]; ++r)
    for (int64_t d = 0; d < counted[1]; ++d) {
      const auto at = static_cast<size_t>(r * config.action_dim + d);
      const double apart = double{got[at]} - double{expected[at]};
      sum += apart * apart;
    }
  return sum / static_cast<double>(counted.count());
}

}  // namespace

FlowLoss flow_loss(Policy& policy, std::span<const Example> examples, uint64_t seed) {
  ensure(!examples.empty(), Fault::input, "no example to compute a loss of");
  const Config& config = policy.config();
  const int64_t dim = policy.spec().action_dim;
  FlowLoss all{.examples = std::ssize(examples), .buckets = std::vector<LossAt>(kBuckets)};
  const auto count = static_cast<double>(examples.size());
  const std::vector<float> zero(static_cast<size_t>(config.horizon * config.action_dim));
  for (int64_t b = 0; b < kBuckets; ++b) {
    LossAt& bucket = all.buckets[static_cast<size_t>(b)];
    bucket.t_low = static_cast<double>(b) / kBuckets;
    bucket.t_high = static_cast<double>(b + 1) / kBuckets;
    bucket.snr = flow_snr((bucket.t_low + bucket.t_high) / 2);
  }
  uint64_t stream = 0;
  for (const Example& example : examples) {
    const std::vector<float> actions = policy.to_model(example.observation, example.actions);
    const Shape counted{std::min(std::ssize(example.actions) / dim, config.horizon), dim};
    std::vector<Policy::Point> points;
    std::vector<std::vector<float>> targets;
    for (const LossAt& bucket : all.buckets) {
      std::vector<float> noise(actions.size());
      normal_noise(seed, stream, noise);
      const uint32_t place = philox({{0, 0, static_cast<uint32_t>(stream++), 1}}, seed).word[0];
      const double t = bucket.t_low + (bucket.t_high - bucket.t_low) * place * 0x1p-32;
      points.push_back({add_noise(actions, noise, t), t});
      std::ranges::transform(noise, actions, noise.begin(), std::minus<>());
      targets.push_back(std::move(noise));
    }
    const std::vector<std::vector<float>> got = policy.velocities(example.observation, points);
    for (size_t b = 0; b < got.size(); ++b) {
      all.buckets[b].loss += mean_square(got[b], targets[b], config, counted) / count;
      all.buckets[b].of_zero += mean_square(zero, targets[b], config, counted) / count;
    }
  }
  for (const LossAt& bucket : all.buckets) {
    all.loss += bucket.loss / kBuckets;
    all.of_zero += bucket.of_zero / kBuckets;
  }
  return all;
}

}  // namespace tendon
