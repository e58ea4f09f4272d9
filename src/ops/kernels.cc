// What the host does for backends without a way of their own.
#include "ops/kernels.h"

#include <cmath>
#include <numbers>

namespace tendon {
namespace {

template <class Float>
void embed_time(const TimeEmbedding& e, float time, std::span<float> to) {
  const size_t half = to.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const auto period = e.period<Float>(static_cast<int64_t>(i));
    const Float angle = static_cast<Float>(time) * (Float{2} * std::numbers::pi_v<Float> / period);
    to[i] = static_cast<float>(std::sin(angle));
    to[half + i] = static_cast<float>(std::cos(angle));
  }
}

}  // namespace

Tensor Kernels::patches(const Pictures& p) {
  std::vector<float> values;
  values.reserve(p.bands.size());
  for (int64_t band = 0; band < p.images * p.side / p.patch; ++band)
    for (int64_t left = 0; left < p.side; left += p.patch)
      for (int64_t row = 0; row < 3 * p.patch; ++row) {  // of all channels
        const int64_t first = (band * 3 * p.patch + row) * p.side + left;
        const auto from = p.bands.subspan(static_cast<size_t>(first), static_cast<size_t>(p.patch));
        values.insert(values.end(), from.begin(), from.end());
      }
  return upload(values, p.patches());
}

Tensor Kernels::embed_times(const TimeEmbedding& e) {
  const auto width = static_cast<size_t>(e.width);
  std::vector<float> values(e.times.size() * width);
  for (size_t k = 0; k < e.times.size(); ++k) {
    const auto row = std::span(values).subspan(k * width, width);
    if (e.sequence == TimeSequence::openpi)
      embed_time<float>(e, e.times[k], row);
    else
      embed_time<double>(e, e.times[k], row);
  }
  return upload(values, {std::ssize(e.times), e.width});
}

}  // namespace tendon
