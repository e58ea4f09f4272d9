// Percentiles of measured times.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

namespace tendon {

// Of values in rising order, at least one, linear between neighbours as NumPy's; `part` is 0.99 for
// the 99th.
template <class T>
double percentile(std::span<const T> sorted, double part) {
  const double at = part * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at), high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace tendon
