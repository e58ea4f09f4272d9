// From the robot's units to the model's and back, by the statistics of a data set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "policy/family.h"

namespace tendon {

enum class NormMethod { identity, mean_std, quantiles, min_max, quantile10 };

std::span<const std::string> norm_methods();  // lerobot's: "IDENTITY", "MEAN_STD", ...
std::string_view name(NormMethod method);
NormMethod norm_method(const std::string& name, const std::string& file);  // its inverse
// What a method divides by comes from these two: {"mean", "std"}, {"q01", "q99"}, ...
std::pair<std::string, std::string> statistic_names(NormMethod method);

// The families differ in epsilon and in arithmetic. openpi: double; 1e-6 added to every range, also
// on the way back. lerobot: float; 1e-8 added to std on the way in, ranges replaced only where they
// are 0.
struct Normalizer {
  Family family = Family::lerobot;
  NormMethod method = NormMethod::identity;
  double eps = 1e-8;                  // lerobot: from the processor file
  std::vector<double> centre, range;  // mean and std, or low and high; empty for identity
  // Of the training data, whatever the method normalises by; empty where the source has none (a
  // minimum is no quantile). For guards and displays.
  std::vector<double> q01, q99;

  // A row, in place: of at most as many values as there are statistics.
  void normalize(std::span<double> row) const;
  void unnormalize(std::span<double> row) const;  // of the network's floats
  // The inverse of unnormalize, without its rounding. A column whose range is 0 becomes what its
  // centre is for the network: unnormalize makes it constant, and dividing by an epsilon would give
  // values that spoil the other columns.
  void renormalize(std::span<double> row) const;
  // How far value `i` varied in training: a deviation, or the width of a range.
  double spread(int64_t i) const {
    const auto d = static_cast<size_t>(i);
    return method == NormMethod::mean_std ? range[d] : range[d] - centre[d];
  }
  // How many values there are statistics of, at most `most`; `most` where there are none.
  int64_t known_dims(int64_t most) const {
    return centre.empty() ? most : std::min<int64_t>(std::ssize(centre), most);
  }
  // Whether the first `dim` values have quantiles.
  bool has_quantiles(int64_t dim) const {
    return dim > 0 && std::min(std::ssize(q01), std::ssize(q99)) >= dim;
  }
};

// By the statistics of the training data. Always the last transform of a robot.
struct Normalize {
  Normalizer state, action;
  // A description that does not give the numbers says which of the checkpoint's it means.
  bool given = false;
  std::optional<std::string> asset;  // assets/<id>
  std::optional<NormMethod> method;  // nothing: as the type of the policy has it
};

// openpi's norm_stats.json: mean/std for pi0, q01/q99 for pi0.5; pi0's may lack q01 and q99. Throws
// Error(Fault::checkpoint) naming file and key when a statistic is missing, not finite, or of
// another length than the rest.
Normalize read_norm_stats(const std::filesystem::path& path, bool quantiles);

}  // namespace tendon
