// labels: op
// links: op_table
#include <gtest/gtest.h>

#include <set>

#include "backends/reference/reference_kernels.h"
#include "op_oracle.h"
#include "op_table.h"
#include "refusals.h"
#include "tensor/compare.h"

namespace tendon {
namespace {

struct OpTable : testing::TestWithParam<OpCase> {};

TEST_P(OpTable, agrees_with_its_formula_in_float64) {
  const OpCase& c = GetParam();
  const auto kernels = make_reference_backend();
  Ops ops(*kernels);
  const OpInputs in = make_inputs(c);
  const std::vector<float> got = run_case(ops, c, in);
  const std::vector<double> exact = Oracle{c, in}.result();
  const std::vector<float> expected(exact.begin(), exact.end());
  const Comparison d = compare(got, expected);
  EXPECT_LE(d.relative_l2, c.bound) << describe(c);
  EXPECT_LE(d.max_error, 10 * c.bound * d.scale) << describe(c);
  EXPECT_EQ(ops.coverage().total.fallback_calls, 0);
  EXPECT_GE(ops.coverage().of(c.op).native_calls, 1);
}

std::vector<OpCase> rows(bool full_size) {
  std::vector<OpCase> some;
  for (const OpCase& c : op_table())
    if (c.full_size == full_size) some.push_back(c);
  return some;
}

const auto name_of = [](const auto& info) { return test_name(info.param); };

INSTANTIATE_TEST_SUITE_P(small, OpTable, testing::ValuesIn(rows(false)), name_of);
INSTANTIATE_TEST_SUITE_P(slow_full_size, OpTable, testing::ValuesIn(rows(true)), name_of);

TEST(OpTableItself, has_a_row_for_every_op) {
  std::set<Op> seen;
  for (const OpCase& c : op_table()) seen.insert(c.op);
  EXPECT_EQ(std::ssize(seen), kOpCount);
}

// The reference without write_rows, and without a linear for a single row.
class Partial final : public reference::ReferenceKernels {
 public:
  Partial() { traits_.name = "partial"; }
  bool supports(const OpCall& call) const override {
    return call.op != Op::write_rows && (call.op != Op::linear || call.rows > 1);
  }
  void write_rows(Tensor&, const Tensor&, int64_t) override { std::abort(); }
};

const OpCase& case_of(Op op) {
  for (const OpCase& c : op_table())
    if (c.op == op) return c;
  std::abort();
}

TEST(Fallback, a_missing_kernel_is_an_error_that_names_op_shapes_and_backend) {
  Partial partial;
  Ops ops(partial);
  const OpCase& c = case_of(Op::linear);
  EXPECT_TRUE(refuses(Fault::backend,
                      "partial has no kernel for linear [1, 1] x weight [1, 1] in f32",
                      [&] { run_case(ops, c, make_inputs(c)); }));
  OpCase two_rows = c;
  two_rows.rows = 2;
  EXPECT_EQ(run_case(ops, two_rows, make_inputs(two_rows)).size(), 2U);
}

TEST(Fallback, runs_elsewhere_when_asked_for_and_is_counted) {
  Partial partial;
  const auto reference = make_reference_backend();
  Ops ops(partial, reference.get());
  for (const Op op : {Op::linear, Op::write_rows}) {
    const OpCase& c = case_of(op);
    const OpInputs in = make_inputs(c);
    const std::vector<double> exact = Oracle{c, in}.result();
    EXPECT_LE(
        compare(run_case(ops, c, in), std::vector<float>(exact.begin(), exact.end())).relative_l2,
        c.bound);
    EXPECT_EQ(ops.coverage().of(op).fallback_calls, 1);
  }
}

TEST(Checks, a_wrong_shape_is_named_with_operation_got_and_expected) {
  const auto kernels = make_reference_backend();
  Ops ops(*kernels);
  const Weight w = ops.prepare({"vision.project.weight",
                                WeightKind::linear,
                                {host_tensor("m", {2, 3}, std::vector<float>(6))},
                                {}});
  const Tensor x = ops.upload(std::vector<float>(4), {2, 2});
  EXPECT_TRUE(refuses(Fault::internal,
                      "[linear] x is [2, 2] but vision.project.weight expects 3 columns",
                      [&] { ops.linear(x, w); }));
}

TEST(Events, say_what_an_op_multiplied_and_moved) {
  const auto kernels = make_reference_backend();
  Ops ops(*kernels);
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return ops.upload(std::vector<float>(static_cast<size_t>(rows * columns), 1.f),
                      {rows, columns});
  };
  const auto weight = [&](WeightKind kind, int64_t parts) {
    const HostTensor part = host_tensor("w", {7, 5}, std::vector<float>(35));
    return ops.prepare({"w", kind, std::vector<HostTensor>(static_cast<size_t>(parts), part)});
  };
  const Weight once = weight(WeightKind::linear, 1), gated = weight(WeightKind::gated, 2);
  const Weight stacked = weight(WeightKind::linear, 4), table = weight(WeightKind::table, 1);
  const Tensor x = matrix(3, 5), row = matrix(1, 5), residual = matrix(3, 7);
  const Tensor q = matrix(3, 8), kv = matrix(6, 4);
  const std::vector<int32_t> seen = {2, 4, 6}, ids = {0, 1, 6};
  std::vector<std::tuple<Op, int64_t, int64_t, int64_t>> told;  // FLOPs, bytes, those of weights
  ops.observe([&](const OpEvent& e) { told.emplace_back(e.op, e.flops, e.bytes, e.weight_bytes); });
  ops.linear(x, once, {.residual = residual});
  ops.gated_linear(x, gated);
  ops.qkv(x, stacked, {.query = 2, .kv = 1, .width = 7});
  ops.attention(q, kv, kv, {.query = 2, .kv = 1, .width = 4}, {seen});
  ops.layer_norm(x, row, row);
  ops.rms_norm(x, row);
  ops.embed(table, ids, 1);
  ops.add_scaled(x, x, 1);
  ops.multiply(x, x);
  ops.concat_rows(std::vector<Tensor>{x, row});
  ops.slice_rows(x, 1, 3);
  Tensor to = x;
  ops.write_rows(to, row, 2);
  ops.download(x);
  const decltype(told) expected = {{Op::linear, 2 * 3 * 7 * 5, 4 * (15 + 21 + 21), 4 * 35},
                                   {Op::gated_linear, 2 * 3 * 14 * 5, 4 * (15 + 21), 4 * 70},
                                   {Op::qkv, 2 * 3 * 28 * 5, 4 * (15 + 84), 4 * 140},
                                   {Op::attention, 2 * 2 * (2 + 4 + 6) * 2 * 4, 4 * (48 + 48), 0},
                                   {Op::layer_norm, 0, 4 * 30, 0},
                                   {Op::rms_norm, 0, 4 * 30, 0},
                                   {Op::embed, 0, 4 * 30, 0},
                                   {Op::add_scaled, 0, 4 * 45, 0},
                                   {Op::multiply, 0, 4 * 45, 0},
                                   {Op::concat_rows, 0, 4 * 40, 0},
                                   {Op::slice_rows, 0, 4 * 20, 0},
                                   {Op::write_rows, 0, 4 * 10, 0},
                                   {Op::download, 0, 4 * 15, 0}};
  EXPECT_EQ(told, expected);
}

TEST(Audit, sums_are_of_one_class_or_module_and_nothing_has_no_share) {
  const auto call = [](OpClass op_class, Module module, bool device, int64_t n) {
    return AuditEntry{.call = {.op_class = op_class,
                               .flops = n,
                               .bytes_read = n,
                               .bytes_written = 10 * n,
                               .bytes_up = n,
                               .bytes_down = 2 * n,
                               .seconds = .5},
                      .module = module,
                      .device = device,
                      .ups = 1,
                      .downs = 2};
  };
  const Audit audit{{call(OpClass::linear, Module::siglip, true, 3),
                     call(OpClass::linear, Module::expert, false, 1),
                     call(OpClass::norm, Module::expert, true, 4)}};
  EXPECT_EQ(audit.total().bytes, 88);
  EXPECT_EQ(audit.total().bytes_down, 16);
  EXPECT_EQ(audit.total().downs, 6);
  EXPECT_EQ(audit.total().seconds, 1.5);
  EXPECT_EQ(audit.of(Module::siglip).device_flops, 3);
  EXPECT_EQ(audit.of(Module::expert).bytes_up, 5);
  EXPECT_EQ(audit.of(OpClass::norm).calls(), 1);
  EXPECT_EQ(audit.of(OpClass::linear).ups, 2);
  EXPECT_EQ(audit.of(OpClass::linear).device_share(), 0.5);
  EXPECT_EQ(audit.of(OpClass::linear).device_flops_share(), 0.75);
  EXPECT_EQ(audit.of(Module::common).device_share(), std::nullopt);
}

TEST(Audit, of_a_backend_with_one_call_per_op_has_its_time_layer_and_bytes) {
  const auto kernels = make_reference_backend();
  Ops ops(*kernels);
  Audit audit;
  ops.observe([&](const OpEvent& event) { audit.add(event); });
  {
    const Ops::Scope module(ops, Module::vlm);
    const Ops::Scope layer = Ops::Scope::layer(ops, 3);
    const Tensor x = ops.upload(std::vector<float>(6, 2.f), {2, 3});
    ops.multiply(x, x);
  }
  ops.observe({});
  ops.upload(std::vector<float>(6), {2, 3});
  ASSERT_EQ(audit.entries.size(), 2U);
  EXPECT_EQ(audit.entries[0].call.bytes_up, 4 * 6);
  EXPECT_EQ(audit.entries[0].ups, 1);
  EXPECT_EQ(audit.entries[1].call.name, "multiply");
  EXPECT_EQ(audit.entries[1].call.bytes_read + audit.entries[1].call.bytes_written, 3 * 4 * 6);
  EXPECT_GT(audit.entries[1].call.seconds, 0);
  ASSERT_EQ(audit.layers().size(), 1U);
  EXPECT_EQ(audit.layers()[0].first, "vlm.layer.3");
  EXPECT_EQ(audit.layers()[0].second.calls(), 2);
}

TEST(Audit, transfers_count_from_the_first_step_to_the_last) {
  Audit audit;
  for (const auto& [module, ups, downs] : {std::tuple(Module::pi0, 1, 0),
                                           {Module::denoise, 1, 0},
                                           {Module::expert, 2, 3},
                                           {Module::denoise, 0, 1},
                                           {Module::denoise, 0, 0},
                                           {Module::pi0, 0, 1}})
    audit.entries.push_back({.module = module, .ups = ups, .downs = downs});
  EXPECT_EQ(audit.transfers_between_steps(), 6);
}

TEST(Threads, do_not_change_a_byte) {
  for (const OpCase& c : rows(true)) {
    if (c.rows > 60) continue;
    const auto one = make_reference_backend({.threads = 1});
    const auto three = make_reference_backend({.threads = 3});
    Ops a(*one), b(*three);
    const OpInputs in = make_inputs(c);
    EXPECT_EQ(run_case(a, c, in), run_case(b, c, in)) << describe(c);
  }
}

}  // namespace
}  // namespace tendon
