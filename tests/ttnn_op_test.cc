// labels: op
// links: op_table
// The ttnn backend's mapping on the fake device against the formulas in float64, row by row of the
// op table. Operands are rounded to bf16 before the formula sees them; what remains is the rounding
// between the calls of the device.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "backends/ttnn/device.h"
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

void run_rows(bool full_size) {
  const auto kernels = make_ttnn_backend(tt::open_fake_device());
  Ops ops(*kernels);
  for (const OpCase& c : op_table()) {
    if (c.full_size != full_size) continue;
    const OpInputs in = rounded(make_inputs(c));
    const std::vector<float> got = run_case(ops, c, in);
    const std::vector<double> exact = Oracle{c, in}.result();
    const Comparison d = compare(got, std::vector<float>(exact.begin(), exact.end()));
    EXPECT_LE(d.relative_l2, kBound) << describe(c);
    EXPECT_LE(d.max_error, 4 * kBound * d.scale) << describe(c);
  }
  EXPECT_EQ(ops.coverage().fallback_calls(), 0);
}

TEST(TtnnOpTable, agrees_with_the_formulas) { run_rows(false); }
TEST(TtnnOpTable, slow_agrees_at_full_size) { run_rows(true); }

TEST(TtnnOpTable, q_and_k_turn_with_the_position_of_their_row) {
  const auto kernels = make_ttnn_backend(tt::open_fake_device());
  Ops ops(*kernels);
  const Heads heads{2, 1, 16};
  const std::vector<float> values(static_cast<size_t>(4 * 32), 0.5f);
  const Tensor x = ops.upload(values, {4, 32});
  const Weight w = ops.prepare({"qkv",
                                WeightKind::linear,
                                {host_tensor("qkv", {64, 32}, std::vector<float>(64 * 32, 0.25f))},
                                {},
                                16});
  const std::vector<float> late = ops.download(ops.qkv(x, w, heads, 37).q);
  const std::vector<float> early = ops.download(ops.qkv(x, w, heads, 0).q);
  EXPECT_GT(compare(late, early).relative_l2, 0.5);
  // Row 3 at first position 37 is row 0 at first position 40.
  const std::vector<float> later = ops.download(ops.qkv(x, w, heads, 40).q);
  for (size_t c = 0; c < 32; ++c) EXPECT_EQ(late[3 * 32 + c], later[c]);
}

// The device's own sinusoids: times [rows, 1] times 2 pi / period_i [1, half] in f32, sine beside
// cosine. The policy takes the host's table; this is the same for times that only a device knows.
std::vector<float> embed_times_on(tt::Device& device, const std::vector<float>& times,
                                  const std::vector<float>& factors) {
  using tt::Call;
  const int64_t rows = std::ssize(times), half = std::ssize(factors);
  const auto format = tt::Format::f32;
  std::vector<float> spread;
  for (const float t : times) spread.insert(spread.end(), static_cast<size_t>(half), t);
  const tt::Held t = device.upload({.dims = {1, 1, rows, half}, .format = format}, spread);
  const tt::Held f = device.upload({.dims = {1, 1, 1, half}, .format = format}, factors);
  const tt::Held angle = device.run({.call = Call::multiply, .format = format}, {t, f});
  const tt::Held sine = device.run({.call = Call::sin}, {angle});
  const tt::Held cosine = device.run({.call = Call::cos}, {angle});
  return device.download(device.run({.call = Call::concat, .axis = 3}, {sine, cosine}));
}

TEST(TtnnTimeEmbedding, of_the_device_is_the_hosts_for_one_time_and_for_many) {
  for (const auto& [low, high] : {std::pair{4e-3, 4.0}, {1e-2, 10.0}}) {
    constexpr int64_t kHalf = 32;
    std::vector<float> factors;
    for (int64_t i = 0; i < kHalf; ++i)
      factors.push_back(
          static_cast<float>(2 * std::numbers::pi /
                             (low * std::pow(high / low, static_cast<double>(i) / (kHalf - 1)))));
    for (const std::vector<float>& times :
         {std::vector<float>{0.3f}, std::vector<float>{1.f, 0.9f, 0.5f, 0.1f, 0.f}}) {
      tt::Device device(tt::open_fake_device());
      const std::vector<float> got = embed_times_on(device, times, factors);
      std::vector<float> expected;
      for (const float t : times)
        for (const bool cosine : {false, true})
          for (const float f : factors)
            expected.push_back(static_cast<float>(cosine ? std::cos(double{t} * double{f})
                                                         : std::sin(double{t} * double{f})));
      // f32 angles up to 1571 radians: 2^-24 of that in the result.
      EXPECT_LE(compare(got, expected).max_error, 2e-4);
    }
  }
}

}  // namespace
}  // namespace tendon
