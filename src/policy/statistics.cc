#include "policy/statistics.h"

#include <array>
#include <cmath>

#include "checkpoint/json.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

const std::array<std::string, 5> kMethods = {"IDENTITY", "MEAN_STD", "QUANTILES", "MIN_MAX",
                                             "QUANTILE10"};

constexpr size_t kDimensionsMax = 4096;

std::vector<double> read_row(const nlohmann::json& object, const std::string& key,
                             const std::string& where) {
  ensure(object.contains(key) && object.at(key).is_array() && !object.at(key).empty() &&
             object.at(key).size() <= kDimensionsMax,
         Fault::checkpoint, "{}: '{}' is missing, null or not a list of 1 to {} numbers", where,
         key, kDimensionsMax);
  std::vector<double> row;
  for (const nlohmann::json& v : object.at(key)) {
    ensure(v.is_number() && std::isfinite(v.get<double>()), Fault::checkpoint,
           "{}: '{}' holds {}, expected finite numbers", where, key, v.dump().substr(0, 40));
    row.push_back(v.get<double>());
  }
  return row;
}

float lerobot_range(double low, double high, double eps) {
  const float d = static_cast<float>(high) - static_cast<float>(low);
  return d == 0.f ? static_cast<float>(eps) : d;
}

}  // namespace

std::span<const std::string> norm_methods() { return kMethods; }
std::string_view name(NormMethod method) { return kMethods[static_cast<size_t>(method)]; }

std::pair<std::string, std::string> statistic_names(NormMethod method) {
  switch (method) {
    case NormMethod::quantiles: return {"q01", "q99"};
    case NormMethod::min_max: return {"min", "max"};
    case NormMethod::quantile10: return {"q10", "q90"};
    default: return {"mean", "std"};
  }
}

NormMethod norm_method(const std::string& name, const std::string& file) {
  for (size_t i = 0; i < kMethods.size(); ++i)
    if (kMethods[i] == name) return static_cast<NormMethod>(i);
  fail(Fault::checkpoint, "{}: unknown normalisation '{}'; nearest: {}", file, name,
       nearest(name, kMethods));
}

void Normalizer::normalize(std::span<double> row) const {
  if (method == NormMethod::identity) return;
  for (size_t i = 0; i < std::min(row.size(), centre.size()); ++i) {
    const double c = centre[i], r = range[i];
    if (family == Family::openpi) {
      row[i] = method == NormMethod::mean_std ? (row[i] - c) / (r + 1e-6)
                                              : (row[i] - c) / (r - c + 1e-6) * 2.0 - 1.0;
    } else {
      const float x = static_cast<float>(row[i]) - static_cast<float>(c);
      row[i] = method == NormMethod::mean_std
                   ? x / (static_cast<float>(r) + static_cast<float>(eps))
                   : 2.f * x / lerobot_range(c, r, eps) - 1.f;
    }
  }
}

void Normalizer::unnormalize(std::span<double> row) const {
  if (method == NormMethod::identity) return;
  for (size_t i = 0; i < std::min(row.size(), centre.size()); ++i) {
    const auto x = static_cast<float>(row[i]);
    const double c = centre[i], r = range[i];
    const auto c32 = static_cast<float>(c);
    if (family == Family::openpi) {
      // NumPy keeps (x + 1) / 2 in the float of the network's output; the product is double.
      row[i] = method == NormMethod::mean_std ? x * (r + 1e-6) + c
                                              : (x + 1.f) / 2.f * (r - c + 1e-6) + c;
    } else if (method == NormMethod::mean_std) {
      row[i] = x * static_cast<float>(r) + c32;
    } else if (method == NormMethod::min_max) {
      row[i] = (x + 1.f) / 2.f * lerobot_range(c, r, eps) + c32;
    } else {
      row[i] = (x + 1.f) * lerobot_range(c, r, eps) / 2.f + c32;
    }
  }
}

void Normalizer::renormalize(std::span<double> row) const {
  if (method == NormMethod::identity) return;
  const bool openpi = family == Family::openpi, mean_std = method == NormMethod::mean_std;
  for (size_t i = 0; i < std::min(row.size(), centre.size()); ++i) {
    // lerobot's statistics are floats, as in unnormalize.
    const double c = openpi ? centre[i] : static_cast<float>(centre[i]);
    const double r = openpi ? range[i] : static_cast<float>(range[i]);
    const double spread = mean_std ? r : openpi ? r - c : lerobot_range(c, r, 0);
    const double x = spread == 0 ? 0 : (row[i] - c) / (openpi ? spread + 1e-6 : spread);
    row[i] = mean_std ? x : 2.0 * x - 1.0;
  }
}

Normalize read_norm_stats(const std::filesystem::path& path, bool quantiles) {
  const std::string file = path.string();
  const nlohmann::json root = read_json(path);
  ensure(root.is_object() && root.contains("norm_stats") && root.at("norm_stats").is_object(),
         Fault::checkpoint, "{}: 'norm_stats' is missing; is it openpi's norm_stats.json?", file);
  const auto read = [&](const std::string& what) {
    const nlohmann::json& all = root.at("norm_stats");
    const std::string where = file + ": norm_stats." + what;
    ensure(all.contains(what) && all.at(what).is_object(), Fault::checkpoint, "{} is missing",
           where);
    Normalizer n{.family = Family::openpi,
                 .method = quantiles ? NormMethod::quantiles : NormMethod::mean_std};
    n.centre = read_row(all.at(what), quantiles ? "q01" : "mean", where);
    n.range = read_row(all.at(what), quantiles ? "q99" : "std", where);
    const auto given = [&](const char* key) {
      return all.at(what).contains(key) && !all.at(what).at(key).is_null();
    };
    if (given("q01") && given("q99")) {
      n.q01 = read_row(all.at(what), "q01", where);
      n.q99 = read_row(all.at(what), "q99", where);
    }
    for (const std::vector<double>* row : {&n.range, &n.q01, &n.q99})
      ensure(row->size() == n.centre.size() || (row != &n.range && row->empty()), Fault::checkpoint,
             "{}: {} and {} values", where, n.centre.size(), row->size());
    return n;
  };
  return {read("state"), read("actions")};
}

}  // namespace tendon
