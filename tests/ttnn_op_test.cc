// labels: op
// links: op_table
// The ttnn backend's mapping on the fake device against the formulas in float64, row by row of the
// op table. Operands are rounded to bf16 before the formula sees them; what remains is the rounding
// between the calls of the device.
#include <gtest/gtest.h>

#include "backends/ttnn/ttnn.h"
#include "op_oracle.h"
#include "op_table.h"
#include "tensor/bf16.h"
#include "tensor/compare.h"

namespace tendon {
namespace {

void round_bf16(std::vector<float>& values) {
  for (float& v : values) v = from_bf16(to_bf16(v));
}

OpInputs rounded(OpInputs in) {
  for (std::vector<float>* v :
       {&in.x, &in.y, &in.weight, &in.bias, &in.residual, &in.gate, &in.values})
    round_bf16(*v);
  return in;
}

// bf16 keeps 8 bits: 2^-9 per rounding at most, 0.2 % on average over a few of them.
constexpr double kBound = 5e-3;

bool may_be_on_device(Op op) { return op == Op::patches || op == Op::embed_times; }

void run_rows(bool full_size, const TtnnOptions& options = {}) {
  const auto kernels = make_ttnn_backend(tt::open_fake_device(), tt::use_of("bf16", options));
  Ops ops(*kernels);
  for (const OpCase& c : op_table()) {
    if (c.full_size != full_size) continue;
    if (!options.on_device.empty() && !may_be_on_device(c.op)) continue;
    const OpInputs in = rounded(make_inputs(c));
    const std::vector<float> got = run_case(ops, c, in);
    const std::vector<double> exact = Oracle{c, in}.result();
    const Comparison d = compare(got, std::vector<float>(exact.begin(), exact.end()));
    EXPECT_LE(d.relative_l2, kBound) << describe(c);
    EXPECT_LE(d.max_error, 4 * kBound * d.scale) << describe(c);
  }
  EXPECT_EQ(ops.coverage().total.fallback_calls, 0);
}

TEST(TtnnOpTable, agrees_with_the_formulas) { run_rows(false); }
TEST(TtnnOpTable, agrees_where_the_device_makes_what_the_host_makes) {
  run_rows(false, {.on_device = "patches,times"});
}
TEST(TtnnOpTable, slow_agrees_at_full_size) { run_rows(true); }

}  // namespace
}  // namespace tendon
