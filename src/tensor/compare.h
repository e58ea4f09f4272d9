// How far two results are apart. All three numbers, because correlation alone hides scale errors.
#pragma once

#include <span>

namespace tendon {

struct Comparison {
  double pcc = 0;          // Pearson correlation; 1 when both are constant and equal
  double max_error = 0;    // largest |got - expected|
  double relative_l2 = 0;  // |got - expected| / |expected|, Euclidean norms
  double scale = 0;        // largest |expected|
};

// Both of the same length. NaN in either makes max_error and relative_l2 NaN.
Comparison compare(std::span<const float> got, std::span<const float> expected);

}  // namespace tendon
