// From the robot's units to the model's and back, by the statistics of a data set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tendon {

// Whose formulas: they differ in epsilon and in arithmetic.
enum class NormFamily {
  openpi,   // double; 1e-6 added to every range, also on the way back
  lerobot,  // float; 1e-8 added to std on the way in, ranges replaced only where they are 0
};
enum class NormMethod { identity, mean_std, quantiles, min_max, quantile10 };

std::string_view name(NormMethod method);  // lerobot's: "MEAN_STD", "QUANTILES", ...
NormMethod norm_method(const std::string& name, const std::string& file);  // its inverse

struct Normalizer {
  NormFamily family = NormFamily::lerobot;
  NormMethod method = NormMethod::identity;
  double eps = 1e-8;                  // lerobot: from the processor file
  std::vector<double> centre, range;  // mean and std, or low and high; empty for identity
  // Of the training data, whatever the method normalises by; empty where the source has none (a
  // minimum is no quantile). For guards and displays.
  std::vector<double> q01, q99;

  // One row of at most as many values as there are statistics.
  std::vector<double> normalize(std::span<const double> row) const;
  // Rows of `dim` values, as the network gives them. Values beyond the statistics: openpi's
  // mean/std treats them as mean 0, std 1 (so they grow by 1e-6), its quantiles leave them.
  std::vector<double> unnormalize(std::span<const float> rows, int64_t dim) const;
  // The inverse of unnormalize, without its rounding. A column whose range is 0 becomes what its
  // centre is for the network: unnormalize makes it constant, and dividing by an epsilon would give
  // values that spoil the other columns.
  std::vector<double> renormalize(std::span<const double> rows, int64_t dim) const;
  // Whether the first `dim` values have quantiles.
  bool has_quantiles(int64_t dim) const {
    return dim > 0 && std::min(std::ssize(q01), std::ssize(q99)) >= dim;
  }
};

struct Statistics {
  Normalizer state, action;
};

// openpi's norm_stats.json: mean/std for pi0, q01/q99 for pi0.5; pi0's may lack q01 and q99. Throws
// Error(Fault::checkpoint) naming file and key when a statistic is missing, not finite, or of
// another length than the rest.
Statistics read_norm_stats(const std::filesystem::path& path, bool quantiles);

}  // namespace tendon
