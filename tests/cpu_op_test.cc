// labels: op
// links: op_table
// The cpu backend against the formulas in float64: every instruction set that this machine has, in
// every precision. Operands that a precision rounds are rounded before the formula sees them, so
// that the bounds stay tight.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu.h"
#include "op_oracle.h"
#include "op_table.h"
#include "tensor/bf16.h"
#include "tensor/compare.h"

namespace tendon {
namespace {

struct Variant {
  std::string isa;
  Precision precision;
};

bool is_product(Op op) {
  return op == Op::prepare || op == Op::linear || op == Op::gated_linear || op == Op::qkv;
}

void round_bf16(std::vector<float>& values) {
  for (float& v : values) v = from_bf16(to_bf16(v));
}

// Rows to the nearest of 255 steps of their largest value.
void round_int8(std::vector<float>& values, size_t columns) {
  for (size_t first = 0; first < values.size(); first += columns) {
    float largest = 0;
    for (size_t c = 0; c < columns; ++c) largest = std::max(largest, std::fabs(values[first + c]));
    if (largest == 0) continue;
    for (size_t c = 0; c < columns; ++c)
      values[first + c] = std::nearbyint(values[first + c] * (127.f / largest)) * (largest / 127.f);
  }
}

OpInputs as_computed(OpInputs in, const OpCase& c, Precision precision) {
  if (precision == Precision::bf16 && is_product(c.op)) {
    round_bf16(in.x);
    round_bf16(in.weight);
  }
  if (precision == Precision::int8 && is_product(c.op)) {
    round_int8(in.x, static_cast<size_t>(c.inputs));
    round_int8(in.weight, static_cast<size_t>(c.inputs));
  }
  if (precision != Precision::f32 && c.op == Op::attention) {
    round_bf16(in.x);
    round_bf16(in.y);
    round_bf16(in.values);
  }
  return in;
}

double bound(const OpCase& c, Precision precision) {
  if (precision != Precision::f32 && c.op == Op::attention) return 4e-3;  // softmax weights: bf16
  return std::max(2 * c.bound, precision == Precision::f32 ? 3e-6 : 1e-5);
}

struct CpuOpTable : testing::TestWithParam<Variant> {};

void run_rows(const Variant& v, bool full_size) {
  for (const int threads : {1, 3}) {
    const auto kernels =
        make_cpu_backend({.threads = threads, .precision = v.precision, .isa = v.isa});
    Ops ops(*kernels);
    for (const OpCase& c : op_table()) {
      if (c.full_size != full_size) continue;
      const OpInputs in = make_inputs(c);
      const std::vector<float> got = run_case(ops, c, in);
      const OpInputs rounded = as_computed(in, c, v.precision);
      const std::vector<double> exact = Oracle{c, rounded}.result();
      const Comparison d = compare(got, std::vector<float>(exact.begin(), exact.end()));
      EXPECT_LE(d.relative_l2, bound(c, v.precision)) << describe(c);
      EXPECT_LE(d.max_error, 10 * bound(c, v.precision) * d.scale) << describe(c);
    }
    EXPECT_EQ(ops.coverage().total.fallback_calls, 0);
  }
}

TEST_P(CpuOpTable, agrees_with_the_formulas) { run_rows(GetParam(), false); }
TEST_P(CpuOpTable, slow_agrees_at_full_size) { run_rows(GetParam(), true); }

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const std::string& isa : cpu_isas())
    for (const Precision p : {Precision::f32, Precision::bf16, Precision::int8})
      all.push_back({isa, p});
  return all;
}

std::string variant_name(const testing::TestParamInfo<Variant>& info) {
  return fmt::format("{}_{}", info.param.isa, name(info.param.precision));
}

INSTANTIATE_TEST_SUITE_P(isa, CpuOpTable, testing::ValuesIn(variants()), variant_name);

// Opening a model refuses such weights; here they make their own outputs NaN and no others.
TEST(CpuInt8, a_row_of_weights_with_a_nan_or_an_infinity_gives_nan) {
  constexpr int64_t kInputs = 70, kOutputs = 5;
  for (const std::string& isa : cpu_isas()) {
    const auto kernels = make_cpu_backend({.threads = 1, .precision = Precision::int8, .isa = isa});
    Ops ops(*kernels);
    const auto outputs = [&](float in_row_1, float in_row_3) {
      std::vector<float> values(kInputs * kOutputs, 0.5f);
      values[kInputs + 3] = in_row_1;
      values[4 * kInputs - 1] = in_row_3;
      const Weight w = ops.prepare(
          {.name = "w", .matrices = {host_tensor("w", {kOutputs, kInputs}, std::move(values))}});
      return ops.download(ops.linear(ops.upload(std::vector<float>(kInputs, 1), {1, kInputs}), w));
    };
    const std::vector<float> usual = outputs(1, 1), spoiled = outputs(NAN, INFINITY);
    for (size_t row = 0; row < kOutputs; ++row) {
      SCOPED_TRACE(fmt::format("{} row {}", isa, row));
      EXPECT_FALSE(std::isnan(usual[row]));
      if (row == 1 || row == 3)
        EXPECT_TRUE(std::isnan(spoiled[row]));
      else
        EXPECT_EQ(spoiled[row], usual[row]);
    }
  }
}

}  // namespace
}  // namespace tendon
