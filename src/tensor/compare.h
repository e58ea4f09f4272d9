// How far two results are apart. All three numbers, because correlation alone hides scale errors.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace tendon {

struct Comparison {
  double pcc = 0;          // Pearson correlation; 1 when both are constant and equal
  double max_error = 0;    // largest |got - expected|
  double relative_l2 = 0;  // |got - expected| / |expected|, Euclidean norms
  double scale = 0;        // largest |expected|
};

// Both of the same length, not 0. NaN in either makes max_error and relative_l2 NaN.
Comparison compare(std::span<const float> got, std::span<const float> expected);

// How far apart two results may be.
struct Bounds {
  double pcc = 1;                   // at least
  double relative_l2 = 0;           // at most
  std::optional<double> max_error;  // at most, in units of `scale`; absent: any

  // Noise of relative L2 r on values of mean 0 leaves a PCC of 1 - r^2 / 2; 1e-12: its rounding.
  static Bounds of_noise(double r, std::optional<double> max_error = {}) {
    return {1 - r * r / 2 - 1e-12, r, max_error};
  }
};

// The numbers that are beyond their bound, NaN among them: "PCC, relative L2". Empty: none.
std::string beyond(const Bounds& bounds, const Comparison& c);

}  // namespace tendon
