// labels: sim
// Every call on the TTNN library on a simulated Wormhole, against sums in float64, and what happens
// when a piece of that tower falls. Needs the folder that scripts/ttnn-sim makes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <set>

#include "backends/ttnn/worker.h"
#include "tensor/compare.h"
#include "tensor/random.h"
#include "ttnn_board.h"
#include "ttnn_processes.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;
using Exact = std::vector<double>;

#define OPTIONS_OR_SKIP(options)                                               \
  if (!std::filesystem::exists(std::string(TENDON_TTNN_SIM) + "/environment")) \
    GTEST_SKIP() << "no TTNN library with a simulator in " << TENDON_TTNN_SIM  \
                 << "; scripts/ttnn-sim makes it";                             \
  WorkerOptions options = simulator_options(TENDON_TTNN_SIM);                  \
  options.call_deadline_s = 240
constexpr Bounds kExact{1, 0, 0.};
// Results and some operands have 8 bits: PCC 0.9999, and as much of the largest value as four times
// the mean error. The library's attention rounds inside too: PCC 0.999.
const Bounds kRounded = Bounds::of_noise(.014, .056), kAttention = Bounds::of_noise(.045, .18);

// A tensor on the device and what the device holds of it, exactly.
struct Operand {
  TensorId id = 0;
  Dims dims{};
  Exact values;
  double at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return values[static_cast<size_t>(((a * dims[1] + b) * dims[2] + c) * dims[3] + d)];
  }
};

class Bench {
 public:
  explicit Bench(const WorkerOptions& options) : board(open_worker(options)) {}

  Operand noise(const Dims& dims, float scale = 1, Format format = Format::bf16, float offset = 0) {
    Values values(size_of(dims));
    normal_noise(++seed_, 0, values);
    for (float& v : values) v = v * scale + offset;
    return put({dims, format}, values);
  }
  Operand put(const Spec& spec, const Values& values) {
    const Values held = unpack(spec, pack(spec, values));
    return {board.put(spec, values), spec.dims, Exact(held.begin(), held.end())};
  }
  // Runs a request and compares: dims and every number of the comparison.
  void check(const std::string& what, const Request& request, const Dims& dims,
             const std::function<double(int64_t, int64_t, int64_t, int64_t)>& expected,
             const Bounds& bounds = kRounded) {
    const Output got = board.run(request);
    EXPECT_EQ(got.spec.memory, request.memory) << what;
    if (request.call == Call::linear || request.call == Call::typecast) {
      EXPECT_EQ(got.spec.format, request.format) << what;
    }
    check(what, request.call, got, dims, expected, bounds);
  }
  void check(const std::string& what, Call call, const Output& got, const Dims& dims,
             const std::function<double(int64_t, int64_t, int64_t, int64_t)>& expected,
             const Bounds& bounds = kRounded) {
    SCOPED_TRACE(what);
    tried.insert(call);
    ASSERT_EQ(got.spec.dims, dims) << to_string(got.spec);
    Values want;
    for (int64_t a = 0; a < dims[0]; ++a)
      for (int64_t b = 0; b < dims[1]; ++b)
        for (int64_t c = 0; c < dims[2]; ++c)
          for (int64_t d = 0; d < dims[3]; ++d)
            want.push_back(static_cast<float>(expected(a, b, c, d)));
    const Comparison r = compare(board.get(got), want);
    fmt::print("{:34} pcc {:.7f} max error {:.5f} of {:.3f} relative l2 {:.6f}\n", what, r.pcc,
               r.max_error, r.scale, r.relative_l2);
    EXPECT_EQ(beyond(bounds, r), "");
  }

  Board board;
  std::set<Call> tried;

 private:
  uint64_t seed_ = 0;
};

double gelu(double v) { return .5 * v * (1 + std::tanh(.7978845608 * (v + .044715 * v * v * v))); }
double silu(double v) { return v / (1 + std::exp(-v)); }

// ---- Every call ----

void moves(Bench& b) {
  const Operand x = b.noise({1, 2, 64, 96});
  b.check(
      "reshape", {.call = Call::reshape, .inputs = {x.id}, .dims = {1, 1, 128, 96}},
      {1, 1, 128, 96}, [&](auto, auto, auto r, auto c) { return x.at(0, r / 64, r % 64, c); },
      kExact);
  b.check(
      "slice, ragged",
      {.call = Call::slice, .inputs = {x.id}, .begin = {0, 1, 5, 0}, .dims = {1, 2, 47, 72}},
      {1, 1, 42, 72}, [&](auto, auto, auto r, auto c) { return x.at(0, 1, r + 5, c); }, kExact);
  const Operand y = b.noise({1, 1, 40, 48});
  b.check(
      "pad, rows and columns", {.call = Call::pad, .inputs = {y.id}, .dims = {1, 1, 64, 64}},
      {1, 1, 64, 64},
      [&](auto, auto, auto r, auto c) { return r < 40 && c < 48 ? y.at(0, 0, r, c) : 0; }, kExact);
  const Operand z = b.noise({1, 1, 3, 48});
  b.check(
      "concat, ragged rows", {.call = Call::concat, .inputs = {y.id, z.id}, .axis = 2},
      {1, 1, 43, 48},
      [&](auto, auto, auto r, auto c) { return r < 40 ? y.at(0, 0, r, c) : z.at(0, 0, r - 40, c); },
      kExact);
  const Operand source = b.noise({1, 1, 32, 32}), target = b.noise({1, 1, 32, 32});
  b.board.run_all({.call = Call::copy, .inputs = {source.id, target.id}});
  EXPECT_EQ(b.board.get({target.id, {target.dims}}), b.board.get({source.id, {source.dims}}));
  b.tried.insert(Call::copy);
  b.check("typecast to bfp8", {.call = Call::typecast, .inputs = {x.id}, .format = Format::bfp8},
          x.dims, [&](auto a, auto h, auto r, auto c) { return x.at(a, h, r, c); });
}

double product(const Operand& x, const Operand& w, int64_t batch, int64_t row, int64_t column) {
  double sum = 0;
  for (int64_t k = 0; k < x.dims[3]; ++k) sum += x.at(batch, 0, row, k) * w.at(0, 0, k, column);
  return sum;
}

void products(Bench& b) {
  const Operand x = b.noise({2, 1, 51, 64}), w = b.noise({1, 1, 64, 96}, .125F),
                bias = b.noise({1, 1, 1, 96}), w8 = b.noise({1, 1, 64, 96}, .125F, Format::bfp8);
  b.check(
      "linear, batch, bias, tanh-GELU",
      {.call = Call::linear, .inputs = {x.id, w.id, bias.id}, .activation = Activation::gelu_tanh},
      {2, 1, 51, 96}, [&](auto n, auto, auto r, auto c) {
        return gelu(product(x, w, n, r, c) + bias.at(0, 0, 0, c));
      });
  b.check("linear, bfp8 weight, SiLU, no bias",
          {.call = Call::linear,
           .inputs = {x.id, w8.id, 0},
           .activation = Activation::silu,
           .compute = {.fidelity = Fidelity::hifi2}},
          {2, 1, 51, 96},
          [&](auto n, auto, auto r, auto c) { return silu(product(x, w8, n, r, c)); });
  const Operand wide = b.noise({1, 1, 128, 128}), deep = b.noise({1, 1, 128, 256}, .1F);
  const Blocks two{Blocks::Kind::multicast_2d, 2, 2, 2, 1, 2, 2, 4};
  b.check("linear, multicast 2D, bfp8 out",
          {.call = Call::linear,
           .inputs = {wide.id, deep.id, 0},
           .format = Format::bfp8,
           .activation = Activation::gelu_tanh,
           .blocks = two},
          {1, 1, 128, 256},
          [&](auto, auto, auto r, auto c) { return gelu(product(wide, deep, 0, r, c)); });
  const Operand row = b.noise({1, 1, 32, 128});
  const Blocks one{Blocks::Kind::multicast_1d, 2, 2, 2, 1, 2, 1, 2};
  b.check(
      "linear, multicast 1D, l1",
      {.call = Call::linear, .inputs = {row.id, deep.id, 0}, .memory = Memory::l1, .blocks = one},
      {1, 1, 32, 256}, [&](auto, auto, auto r, auto c) { return product(row, deep, 0, r, c); });
}

void norms(Bench& b) {
  const Operand x = b.noise({1, 1, 51, 48}, 2, Format::bf16, .5F), scale = b.noise({1, 1, 1, 48}),
                shift = b.noise({1, 1, 1, 48});
  Exact mean(51), square(51);
  for (int64_t r = 0; r < 51; ++r)
    for (int64_t c = 0; c < 48; ++c) {
      mean[static_cast<size_t>(r)] += x.at(0, 0, r, c) / 48;
      square[static_cast<size_t>(r)] += x.at(0, 0, r, c) * x.at(0, 0, r, c) / 48;
    }
  b.check("layer_norm, 48 columns",
          {.call = Call::layer_norm, .inputs = {x.id, scale.id, shift.id}, .scalar = 1e-6F}, x.dims,
          [&](auto, auto, auto r, auto c) {
            const double m = mean[static_cast<size_t>(r)], q = square[static_cast<size_t>(r)];
            return (x.at(0, 0, r, c) - m) / std::sqrt(q - m * m + 1e-6) * scale.at(0, 0, 0, c) +
                   shift.at(0, 0, 0, c);
          });
  b.check("rms_norm, 48 columns",
          {.call = Call::rms_norm, .inputs = {x.id, scale.id}, .scalar = 1e-6F}, x.dims,
          [&](auto, auto, auto r, auto c) {
            return x.at(0, 0, r, c) / std::sqrt(square[static_cast<size_t>(r)] + 1e-6) *
                   scale.at(0, 0, 0, c);
          });
}

void attends(Bench& b) {
  const Operand q = b.noise({1, 8, 64, 64}), k = b.noise({1, 1, 96, 64}),
                v = b.noise({1, 1, 96, 64});
  Values hidden(64 * 96);
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = i % 96 >= 70 || i % 7 == 3 ? -100 : 0;
  const Operand mask = b.put({{1, 1, 64, 96}}, hidden);
  const double scale = 1 / 8.0;
  b.check(
      "attention, 8 to 1, masked",
      {.call = Call::attention,
       .inputs = {q.id, k.id, v.id, mask.id},
       .scalar = static_cast<float>(scale),
       .compute = {.f32_accumulate = false},
       .chunks = {64, 96}},
      q.dims,
      [&](auto, auto h, auto r, auto c) {
        double total = 0, sum = 0;
        for (int64_t n = 0; n < 96; ++n) {
          double score = mask.at(0, 0, r, n);
          for (int64_t d = 0; d < 64; ++d) score += q.at(0, h, r, d) * k.at(0, 0, n, d) * scale;
          total += std::exp(score);
          sum += std::exp(score) * v.at(0, 0, n, c);
        }
        return sum / total;
      },
      kAttention);
  Values cosine(64 * 64), sine(64 * 64);
  for (size_t i = 0; i < cosine.size(); ++i) {
    const double angle =
        static_cast<double>(i / 64 + 37) / std::pow(1e4, static_cast<double>(i % 32) / 32);
    cosine[i] = static_cast<float>(std::cos(angle));
    sine[i] = static_cast<float>(std::sin(angle));
  }
  const Operand c = b.put({{1, 1, 64, 64}}, cosine), s = b.put({{1, 1, 64, 64}}, sine);
  b.check("rotary", {.call = Call::rotary, .inputs = {q.id, c.id, s.id}}, q.dims,
          [&](auto, auto h, auto r, auto i) {
            const double other = i < 32 ? -q.at(0, h, r, i + 32) : q.at(0, h, r, i - 32);
            return q.at(0, h, r, i) * c.at(0, 0, r, i) + other * s.at(0, 0, r, i);
          });
}

void heads(Bench& b) {
  const Operand x = b.noise({1, 1, 64, 6 * 64});
  const std::vector<Output> made = b.board.run_all(
      {.call = Call::create_qkv_heads, .inputs = {x.id}, .heads = 4, .kv_heads = 1});
  for (int64_t i : {0, 1, 2})
    b.check(
        fmt::format("create_qkv_heads {}", i), Call::create_qkv_heads, made[static_cast<size_t>(i)],
        {1, i == 0 ? 4 : 1, 64, 64},
        [&](auto, auto h, auto r, auto c) { return x.at(0, 0, r, (i == 0 ? h : 3 + i) * 64 + c); },
        kExact);
  const Operand y = b.noise({2, 4, 64, 32});
  b.check(
      "concat_heads", {.call = Call::concat_heads, .inputs = {y.id}}, {2, 1, 64, 128},
      [&](auto n, auto, auto r, auto c) { return y.at(n, c / 32, r, c % 32); }, kExact);
  const Spec ids{{1, 1, 1, 7}, Format::u32, Layout::row_major};
  const Operand table = b.put({{1, 1, 200, 64}, Format::bf16, Layout::row_major}, [] {
    Values values(200 * 64);
    normal_noise(99, 0, values);
    return values;
  }());
  const Operand id = b.put(ids, {0, 199, 3, 3, 64, 31, 32});
  b.check(
      "embedding", {.call = Call::embedding, .inputs = {id.id, table.id}}, {1, 1, 7, 64},
      [&](auto, auto, auto r, auto c) {
        return table.at(0, 0, static_cast<int64_t>(id.at(0, 0, 0, r)), c);
      },
      kExact);
}

void elements(Bench& b) {
  const Operand x = b.noise({1, 2, 51, 64}, 2), y = b.noise({1, 2, 51, 64}),
                row = b.noise({1, 1, 1, 64});
  b.check("add", {.call = Call::add, .inputs = {x.id, y.id}}, x.dims,
          [&](auto n, auto h, auto r, auto c) { return x.at(n, h, r, c) + y.at(n, h, r, c); });
  b.check("multiply by one row", {.call = Call::multiply, .inputs = {x.id, row.id}}, x.dims,
          [&](auto n, auto h, auto r, auto c) { return x.at(n, h, r, c) * row.at(0, 0, 0, c); });
  b.check("multiply_scalar", {.call = Call::multiply_scalar, .inputs = {x.id}, .scalar = -.1F},
          x.dims, [&](auto n, auto h, auto r, auto c) { return x.at(n, h, r, c) * -.1F; });
}

TEST(TtnnSimulator, every_call_agrees_with_float64) {
  OPTIONS_OR_SKIP(options);
  Bench bench(options);
  const Caps& caps = bench.board.api().caps();
  EXPECT_EQ(caps.description, "TTNN library on a simulated Wormhole");
  EXPECT_FALSE(caps.fast_dispatch);
  moves(bench);
  products(bench);
  norms(bench);
  attends(bench);
  heads(bench);
  elements(bench);
  for (int i = 0; i <= static_cast<int>(Call::copy); ++i)
    EXPECT_TRUE(bench.tried.contains(static_cast<Call>(i))) << name(static_cast<Call>(i));
}

// ---- When a piece falls ----

// A device in a product that takes the simulator minutes. The library returns before it is done;
// the next call waits for it.
struct Busy {
  explicit Busy(const WorkerOptions& options) : bench(options), family(below(getpid())) {
    const Operand x = bench.noise({1, 1, 1024, 1024}), w = bench.noise({1, 1, 1024, 1024});
    product = {.call = Call::linear, .inputs = {x.id, w.id, 0}};
    bench.board.run(product);
  }
  Bench bench;
  std::vector<Running> family;
  Request product;
};

TEST(TtnnSimulator, a_worker_killed_in_the_middle_of_a_call_is_a_lost_device) {
  OPTIONS_OR_SKIP(options);
  Busy busy(options);
  ASSERT_GT(find_running(busy.family, "server.py").id, 0) << "no simulator";
  EXPECT_SAYS(
      lose(busy.bench.board, busy.product, busy.family, [&] { kill(busy.family[1].id, SIGKILL); }),
      "signal 9 (Killed)");
}

TEST(TtnnSimulator, a_simulator_that_ends_is_a_lost_device) {
  OPTIONS_OR_SKIP(options);
  Busy busy(options);
  EXPECT_SAYS(lose(busy.bench.board, busy.product, busy.family,
                   [&] { kill(find_running(busy.family, "server.py").id, SIGKILL); }),
              "the simulator (process");
}

TEST(TtnnSimulator, a_call_past_its_deadline_ends_the_simulator) {
  OPTIONS_OR_SKIP(options);
  options.call_deadline_s = 6;
  Busy busy(options);
  EXPECT_SAYS(lose(busy.bench.board, busy.product, busy.family), "linear took longer than 6 s");
}

TEST(TtnnSimulator, nothing_runs_on_when_tendon_is_killed) {
  OPTIONS_OR_SKIP(options);
  expect_all_end_with_tendon(options, "server.py");
}

TEST(TtnnSimulator, nothing_stays_in_shared_memory_and_the_cost_of_a_call_is_told) {
  OPTIONS_OR_SKIP(options);
  const std::set<std::string> before = shared_memory_names();
  {
    Bench bench(options);
    const Operand x = bench.noise({1, 1, 64, 64});
    const Request reshape{.call = Call::reshape, .inputs = {x.id}, .dims = {1, 2, 32, 64}};
    overhead_us(bench.board, reshape, 100);
    fmt::print("{:.1f} us per call outside the library\n", overhead_us(bench.board, reshape, 400));
  }
  EXPECT_EQ(shared_memory_names(), before);
}

// The stand-in of the unit tests, here with the numpy that the real library brings.
TEST(TtnnSimulator, a_library_with_another_tensor_file_packs_uploads_itself) {
  OPTIONS_OR_SKIP(options);
  options.environment = {"PYTHONPATH=" TENDON_TEST_DATA "/ttnn/stub", "STUB_FILES=other"};
  Bench bench(options);
  EXPECT_SAYS(bench.board.api().caps().description, "it packs uploads itself");
  for (const Format format : {Format::bf16, Format::bfp8}) {
    const Operand x = bench.noise({1, 2, 33, 40}, 1, format);
    const Values got = bench.board.get({x.id, {x.dims}});
    EXPECT_EQ(Exact(got.begin(), got.end()), x.values) << name(format);
  }
}

}  // namespace
}  // namespace tendon::tt
