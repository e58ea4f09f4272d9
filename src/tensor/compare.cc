#include "tensor/compare.h"

#include <algorithm>
#include <cmath>

#include "tensor/check.h"

namespace tendon {

Comparison compare(std::span<const float> got, std::span<const float> expected) {
  ensure(got.size() == expected.size() && !got.empty(), Fault::internal,
         "comparing {} values with {}", got.size(), expected.size());
  const double n = static_cast<double>(got.size());
  double sum_g = 0, sum_e = 0, squares = 0, error_squares = 0;
  Comparison c;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = got[i], e = expected[i], error = std::abs(g - e);
    sum_g += g;
    sum_e += e;
    squares += e * e;
    error_squares += error * error;
    if (!(error <= c.max_error)) c.max_error = error;  // also when error is NaN
    c.scale = std::max(c.scale, std::abs(e));
  }
  const double mean_g = sum_g / n, mean_e = sum_e / n;
  double covariance = 0, variance_g = 0, variance_e = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = got[i] - mean_g, e = expected[i] - mean_e;
    covariance += g * e;
    variance_g += g * g;
    variance_e += e * e;
  }
  const double spread = std::sqrt(variance_g * variance_e);
  c.pcc = spread > 0 ? covariance / spread : (error_squares == 0 ? 1.0 : 0.0);
  c.relative_l2 = squares > 0 ? std::sqrt(error_squares / squares) : std::sqrt(error_squares);
  return c;
}

std::string beyond(const Bounds& bounds, const Comparison& c) {
  std::string names;
  const auto expect = [&](bool within, const char* name) {
    if (!within) names += (names.empty() ? "" : ", ") + std::string(name);
  };
  expect(c.pcc >= bounds.pcc, "PCC");
  expect(c.relative_l2 <= bounds.relative_l2, "relative L2");
  expect(!bounds.max_error || c.max_error <= *bounds.max_error * c.scale, "max error");
  return names;
}

}  // namespace tendon
