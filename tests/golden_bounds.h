// How far a stage may be from lerobot's, and whether it is.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "tensor/check.h"
#include "tensor/compare.h"
#include "test_files.h"

namespace tendon {

// Relative L2 that is allowed: of the time embedding, of x and the actions, of the velocity, which
// ten steps average out, and of other stages.
struct Tolerance {
  double time, actions, velocity, stage;

  double of(const std::string& name) const {
    if (name.ends_with(".time_embed")) return time;
    if (name.starts_with("actions") || name.ends_with(".x")) return actions;
    return name.ends_with(".v") ? velocity : stage;
  }
};

// The reasons of f32 are in tools/make_goldens/README.md. Rounded operands: up to three times the
// largest value over the tiny cases (docs/testing.md), and below one half, so that neither twice
// the values nor their max error pass.
inline Tolerance tolerance_of(const std::string& backend, const std::string& precision,
                              bool full_size) {
  constexpr double kTime = 1e-7;  // the host computes it in f32; ttnn rounds it to bf16
  if (backend == "ttnn")          // every tensor is rounded between the calls of the device
    return precision == "bfp8" ? Tolerance{.005, .35, .49, .22} : Tolerance{.005, .12, .3, .14};
  if (precision == "bf16") return {kTime, full_size ? 1e-2 : 3e-2, .15, .06};
  if (precision == "int8") return {kTime, full_size ? .1 : .2, .45, .15};
  if (full_size) return {kTime, 5e-5, 5e-5, 5e-5};
  // The others sum a product in longer chains than the reference: twice the rounding.
  const double stage = backend != "reference" ? 2e-5 : 1e-5;
  return {kTime, 2e-5, stage, stage};
}

// The largest error is up to 2.7 times as much of the largest value as the mean error is of the
// mean; two times leave the margin that the tolerance has, and stay below 1.
inline Bounds bounds(double relative_l2) { return Bounds::of_noise(relative_l2, 2 * relative_l2); }

using Rows = std::vector<float>;

inline Rows floats(const HostTensor& t) {
  const std::vector<double> values = numbers(t);
  return {values.begin(), values.end()};
}

inline bool report(const std::string& name, const Rows& got, const Rows& expected,
                   double relative_l2) {
  ensure(got.size() == expected.size(), Fault::verdict, "{}: {} values, expected {}", name,
         got.size(), expected.size());
  const Comparison d = compare(got, expected);
  const Bounds allowed = bounds(relative_l2);
  const std::string failed = beyond(allowed, d);
  fmt::print("{:34} pcc {:.12f}  max error {:.2e} of {:.2e}  relative L2 {:.2e}  {}{}\n", name,
             d.pcc, d.max_error, d.scale, d.relative_l2,
             failed.empty() ? "ok" : "BEYOND BOUND: ", failed);
  Rows doubled = got;
  for (float& v : doubled) v *= 2;
  ensure(!beyond(allowed, compare(doubled, expected)).empty(), Fault::verdict,
         "{}: twice the values would pass", name);
  return failed.empty();
}

}  // namespace tendon
