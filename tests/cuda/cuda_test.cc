// The cuda backend: op table, graphs, faults; on a GPU or on the model of CUDA (on_host/).
#include "backends/cuda/cuda.h"

#include <gtest/gtest.h>

#include "../op_oracle.h"
#include "../refusals.h"
#include "tensor/compare.h"
#if TENDON_CUDA_ON_HOST
#include "cublasLt.h"
#endif

namespace tendon {
namespace {

std::unique_ptr<Kernels> open(CudaPrecision precision = CudaPrecision::f32, bool graphs = true) {
  return make_cuda_backend(
      {.precision = precision, .graphs = graphs, .blas_library = TENDON_CUBLASLT});
}

#if TENDON_CUDA_ON_HOST
using cuda_on_host::blas_machine;
using cuda_on_host::machine;

struct Cuda : testing::Test {  // as it was, whatever a test did to it
  Cuda() { machine() = {}, blas_machine() = {}; }
  ~Cuda() override { machine() = {}, blas_machine() = {}; }
};
#else
struct Cuda : testing::Test {
  void SetUp() override {
    try {
      open();
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
};
#endif

Comparison run(Kernels& kernels, const OpCase& c) {
  Ops ops(kernels);
  const OpInputs in = make_inputs(c);
  const std::vector<double> exact = Oracle{c, in}.result();
  return compare(run_case(ops, c, in), std::vector<float>(exact.begin(), exact.end()));
}

struct CudaOpTable : Cuda, testing::WithParamInterface<OpCase> {};

TEST_P(CudaOpTable, agrees_with_its_formula_in_float64) {
  const OpCase& c = GetParam();
  const Comparison d = run(*open(), c);
  EXPECT_LE(d.relative_l2, c.bound) << describe(c);
  EXPECT_LE(d.max_error, 10 * c.bound * d.scale) << describe(c);
#if TENDON_CUDA_ON_HOST
  EXPECT_EQ(machine().bytes, 0);                      // all given back
  blas_machine().bias = blas_machine().gelu = false;  // a library that does less in one pass
  for (const bool refuses : {true, false}) {
    blas_machine().refuses = refuses;
    EXPECT_LE(run(*open(), c).relative_l2, c.bound) << describe(c);
  }
#endif
}

TEST_P(CudaOpTable, in_bf16_stays_within_the_rounding_of_its_operands) {
  const OpCase& c = GetParam();
  const Comparison d = run(*open(CudaPrecision::bf16), c);
  EXPECT_LE(d.relative_l2, 8e-3) << describe(c);
}

std::vector<OpCase> rows() {
  std::vector<OpCase> some;
  for (const OpCase& c : op_table())  // without those that compute for minutes on the host
    if (!TENDON_CUDA_ON_HOST || (!c.full_size && c.rows * c.inputs < 200'000)) some.push_back(c);
  some.push_back({{.heads = {2, 1, 20}, .ragged = true},
                  Op::attention,
                  "several tiles of rows and keys",
                  37,
                  53,
                  2 * 20});
  return some;
}

const auto name_of = [](const auto& info) { return test_name(info.param); };

INSTANTIATE_TEST_SUITE_P(all, CudaOpTable, testing::ValuesIn(rows()), name_of);

// A chain of ops with everything that a recorded body may hold on to.
struct Chain {
  Ops ops;
  Weight up, down;
  Tensor scale, cache;

  explicit Chain(Kernels& kernels) : ops(kernels) {
    up = ops.prepare({"up", WeightKind::gated, {host_tensor("up", {24, 16}, values(24 * 16, 1))}});
    down = ops.prepare({"down", WeightKind::linear, {host_tensor("d", {16, 12}, values(192, 2))}});
    scale = ops.upload(values(16, 3), {1, 16});
    cache = ops.upload(values(8 * 16, 4), {8, 16});
  }
  static std::vector<float> values(size_t count, int seed) {
    std::vector<float> v(count);
    for (size_t i = 0; i < count; ++i)
      v[i] = std::sin(static_cast<float>(i + 100 * static_cast<size_t>(seed)));
    return v;
  }
  Tensor body(const Tensor& x) {
    Tensor y = ops.rms_norm(x, scale);
    for (int i = 0; i < 3; ++i) y = ops.linear(ops.gated_linear(y, up), down, {.residual = y});
    ops.write_rows(cache, ops.slice_rows(y, 0, 2), 4);
    const int32_t all[] = {8};
    return ops.attention(y, cache, cache, {1, 1, 16}, {all});
  }
  std::vector<float> call(int seed, int64_t size = 4) {
    const Tensor x = ops.upload(values(4 * 16, seed), {4, 16});
    const auto recorded = [&](auto in) { return std::vector<Tensor>{body(in[0]), cache}; };
    const std::vector<Tensor> out = ops.graph({"body", {size}}, std::span(&x, 1), recorded);
    cache = out[1];
    std::vector<float> all = ops.download(out[0]);
    const std::vector<float> kept = ops.download(cache);
    all.insert(all.end(), kept.begin(), kept.end());
    return all;
  }
};

struct CudaGraph : Cuda {};

TEST_F(CudaGraph, of_a_call_gives_its_bytes_from_the_second_time_on) {
  const auto plain = open(CudaPrecision::bf16, false), kernels = open(CudaPrecision::bf16);
  Chain without(*plain), with(*kernels);
  for (const int seed : {5, 6, 7, 5, 8}) EXPECT_EQ(with.call(seed), without.call(seed)) << seed;
  EXPECT_EQ(with.ops.coverage().total.native_calls, without.ops.coverage().total.native_calls);
#if TENDON_CUDA_ON_HOST
  EXPECT_EQ(machine().captures, 1);
  EXPECT_EQ(machine().graph_launches, 4);
  const cuda_on_host::Machine before = machine();
  with.call(9);
  EXPECT_EQ(machine().mallocs, before.mallocs);
  EXPECT_EQ(machine().copies_in, before.copies_in + 1);
  EXPECT_EQ(machine().copies_out, before.copies_out + 2);
#endif
}

TEST_F(CudaGraph, keeps_what_it_reads_when_nobody_else_does) {
  const auto kernels = open();
  Chain chain(*kernels);
  chain.call(5);
  const std::vector<float> expected = chain.call(5);
  chain.scale = {};  // the handles go, the graph still reads what they named
  for (int i = 0; i < 20; ++i) chain.ops.upload(Chain::values(16, i), {1, 16});
  EXPECT_EQ(chain.call(5), expected);
}

TEST_F(CudaGraph, of_one_ops_is_not_replayed_for_the_next_which_has_other_tensors) {
  const auto plain = open(CudaPrecision::f32, false), kernels = open();
  for (const int user : {0, 1}) {
    Chain without(*plain), with(*kernels);
    for (Chain* chain : {&without, &with})
      chain->scale = chain->ops.upload(Chain::values(16, 30 + user), {1, 16});
    for (const int seed : {5, 6, 7}) EXPECT_EQ(with.call(seed), without.call(seed)) << user;
    EXPECT_EQ(with.ops.coverage().total.native_calls, without.ops.coverage().total.native_calls);
  }
}

TEST_F(CudaGraph, of_a_body_that_fails_is_forgotten) {
  const auto kernels = open();
  Chain chain(*kernels);
  const std::vector<float> expected = chain.call(5);
  const Tensor x = chain.ops.upload(Chain::values(4 * 16, 5), {4, 16});
  const auto uploads = [&](auto) {
    return std::vector<Tensor>{chain.ops.upload(Chain::values(16, 1), {1, 16})};
  };
  EXPECT_THROW(chain.ops.graph({"body", {4}}, std::span(&x, 1), uploads), Error);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(chain.call(5), expected);
}

#if TENDON_CUDA_ON_HOST
TEST_F(CudaGraph, uses_memory_again_for_what_its_body_made) {
  const auto kernels = open();
  Chain chain(*kernels);
  const int64_t before = machine().bytes;
  chain.call(5);
  const int64_t plain = machine().bytes - before;
  chain.call(5);
  EXPECT_LE(machine().bytes - before - plain, plain);
}

TEST_F(CudaGraph, of_the_calls_used_last_are_kept_and_memory_is_bounded) {
  const auto kernels = open();
  Chain chain(*kernels);
  int64_t bytes = 0;
  for (int round = 0; round < 2; ++round)
    for (int key = 0; key < 20; ++key) {
      for (int again = 0; again < 3; ++again) chain.call(5, key);
      if (round == 0 && key == 17) bytes = machine().bytes;
      if (round > 0 || key > 17) {
        EXPECT_EQ(machine().bytes, bytes);
      }
    }
  EXPECT_EQ(machine().captures, 2 * 20);
}

struct CudaFaults : Cuda {};

testing::AssertionResult refuses_to_open(std::string_view text) {
  return refuses(Fault::backend, text, [] { open(); });
}

TEST_F(CudaFaults, without_a_fit_gpu_say_what_was_found) {
  machine().devices = 0;
  EXPECT_TRUE(refuses_to_open("no CUDA-capable device is detected; the driver"));
  machine().driver = 0;
  EXPECT_TRUE(refuses_to_open("no NVIDIA driver is installed"));
  machine() = {.major = 7, .minor = 5};
  EXPECT_TRUE(refuses_to_open("need compute capability 8.0 or newer, found"));
  machine() = {};
  EXPECT_TRUE(
      refuses(Fault::backend, "there is no number 1", [] { make_cuda_backend({.device = 1}); }));
  EXPECT_TRUE(refuses(Fault::backend, "/nowhere/libcublasLt.so",
                      [] { make_cuda_backend({.blas_library = "/nowhere/libcublasLt.so"}); }));
}

TEST_F(CudaFaults, out_of_device_memory_is_one_and_gives_everything_back) {
  machine().bytes_max = (int64_t{32} << 20) + 8192;
  {
    const auto kernels = open();
    Ops ops(*kernels);
    const std::vector<float> too_many(4096);
    EXPECT_TRUE(refuses(Fault::memory, "out of memory", [&] { ops.upload(too_many, {4, 1024}); }));
    const Tensor fits = ops.upload(std::vector<float>(1024, 2.f), {1, 1024});
    EXPECT_EQ(ops.download(fits)[0], 2.f);
  }
  EXPECT_EQ(machine().bytes, 0);
}

TEST_F(CudaFaults, a_device_lost_in_the_middle_of_a_call_stays_lost) {
  const auto kernels = open();
  Chain chain(*kernels);
  for (int i = 0; i < 3; ++i) chain.call(5);
  machine().lost_after = machine().launches + 7;
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(refuses(Fault::backend, "unspecified launch failure", [&] { chain.call(5); }));
}

TEST_F(CudaFaults, heads_beyond_the_kernels_are_refused) {
  const auto kernels = open();
  const OpCase wide{{.heads = {1, 1, 641}}, Op::attention, "a wide head", 1, 2, 641};
  Ops ops(*kernels);
  EXPECT_TRUE(refuses(Fault::backend, "no kernel for attention [1, 641]",
                      [&] { run_case(ops, wide, make_inputs(wide)); }));
}

#endif

}  // namespace
}  // namespace tendon
