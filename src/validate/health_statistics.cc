// Whether statistics can normalise anything.
#include <algorithm>
#include <cmath>

#include "tensor/check.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

// Below this the epsilons of openpi and lerobot, not the data, decide what comes out.
constexpr double kSpreadMin = 1e-5;

using Rows = std::map<std::string, std::vector<double>>;

// What the statistics that are not in use say about dimension d: the smallest spread; absent: there
// are none.
std::optional<double> other_spread(const Rows& rows, const std::string& in_use, size_t d) {
  const auto value = [&](const char* name) {
    const auto row = rows.find(name);
    return row == rows.end() || d >= row->second.size() ? std::nan("") : row->second[d];
  };
  std::optional<double> least;
  for (const double spread : {in_use == "std" ? std::nan("") : value("std"),
                              in_use == "q99" ? std::nan("") : value("q99") - value("q01")})
    if (std::isfinite(spread)) least = std::min(least.value_or(spread), spread);
  return least;
}

struct Judgement {
  const StoredStatistics& s;
  std::string low_name, high_name;
  Report r;
  std::string constant;  // dimensions that never changed

  const std::vector<double>* row(const std::string& statistic) {
    const auto found = s.rows.find(statistic);
    std::string there;
    for (const auto& [name, values] : s.rows) there += (there.empty() ? "" : ", ") + name;
    if (found == s.rows.end()) {
      r.error("statistics.missing", s.vector + "." + statistic,
              fmt::format(
                  "{}: {} has no {}, which {} normalisation needs; there is: {}. Were these "
                  "statistics computed for another kind of model?",
                  s.file, s.vector, statistic, name(s.method), there.empty() ? "nothing" : there));
      return nullptr;
    }
    const int64_t n = std::ssize(found->second);
    if (n < s.dim_min || n > s.dim_max)
      r.error("statistics.dimension", s.vector + "." + statistic,
              fmt::format("{}: {}.{} has {} values, expected {} to {}; do the statistics belong to "
                          "this robot?",
                          s.file, s.vector, statistic, n, s.dim_min, s.dim_max));
    return &found->second;
  }

  std::string subject(const std::string& statistic, size_t d) const {
    return fmt::format("{}.{}[{}]", s.vector, statistic, d);
  }

  void dimension(size_t d, double low, double high) {
    for (const auto& [statistic, value] : {std::pair(low_name, low), std::pair(high_name, high)})
      if (!std::isfinite(value))
        r.error("statistics.nan", subject(statistic, d),
                fmt::format("{}: {} is {}, expected a finite number; compute the statistics again",
                            s.file, subject(statistic, d), value));
    if (!std::isfinite(low) || !std::isfinite(high)) return;
    const bool deviation = s.method == NormMethod::mean_std;
    const double spread = deviation ? high : high - low;
    if (spread < 0 && deviation)
      r.error("statistics.negative", subject(high_name, d),
              fmt::format("{}: {} is {}, a standard deviation is never negative", s.file,
                          subject(high_name, d), high));
    else if (spread < 0)
      r.error("statistics.order", subject(high_name, d),
              fmt::format("{}: {} is {}, below {} = {}; were the two swapped?", s.file,
                          subject(high_name, d), high, low_name, low));
    else if (spread < kSpreadMin)
      narrow(d, spread);
  }

  // A dimension that never changed is no fault where all statistics say so.
  void narrow(size_t d, double spread) {
    const std::optional<double> other = other_spread(s.rows, high_name, d);
    if (other && std::abs(*other) < kSpreadMin) {
      constant += (constant.empty() ? "" : ", ") + std::to_string(d);
      return;
    }
    r.add(other ? Finding::Level::error : Finding::Level::warning, "statistics.constant",
          subject(high_name, d),
          fmt::format("{}: {} leaves a spread of {:.3g}, by which every deviation is divided{}",
                      s.file, subject(high_name, d), spread,
                      other ? fmt::format("; the other statistics say {:.3g}", *other) : ""));
  }
};

}  // namespace

std::pair<std::string, std::string> statistic_names(NormMethod method) {
  switch (method) {
    case NormMethod::quantiles: return {"q01", "q99"};
    case NormMethod::min_max: return {"min", "max"};
    case NormMethod::quantile10: return {"q10", "q90"};
    default: return {"mean", "std"};
  }
}

std::vector<Finding> judge(const StoredStatistics& s) {
  if (s.method == NormMethod::identity) return {};
  const auto [low_name, high_name] = statistic_names(s.method);
  Judgement j{s, low_name, high_name};
  const std::vector<double>* low = j.row(low_name);
  const std::vector<double>* high = j.row(high_name);
  if (!low || !high) return std::move(j.r.findings);
  if (low->size() != high->size())
    j.r.error("statistics.dimension", s.vector + "." + high_name,
              fmt::format("{}: {} has {} values of {} and {} of {}; expected as many", s.file,
                          s.vector, low->size(), low_name, high->size(), high_name));
  for (size_t d = 0; d < std::min(low->size(), high->size()); ++d)
    j.dimension(d, (*low)[d], (*high)[d]);
  if (!j.constant.empty())
    j.r.add(Finding::Level::note, "statistics.constant", s.vector,
            fmt::format("{}: dimension {} of {} never changed in the data set; a robot that moves "
                        "it leaves what the model has seen",
                        s.file, j.constant, s.vector));
  return std::move(j.r.findings);
}

}  // namespace tendon
