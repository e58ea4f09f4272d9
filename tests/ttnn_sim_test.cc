// labels: sim
// Every call on the TTNN library on a simulated Wormhole against the fake device, and what happens
// when a piece of that tower falls. Needs the folder that scripts/ttnn-sim makes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tensor/compare.h"
#include "ttnn_cases.h"
#include "ttnn_processes.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;

#define OPTIONS_OR_SKIP(options)                                              \
  if (!std::filesystem::exists(TENDON_TTNN_SIM "/environment"))               \
    GTEST_SKIP() << "no TTNN library with a simulator in " << TENDON_TTNN_SIM \
                 << "; scripts/ttnn-sim makes it";                            \
  WorkerOptions options = simulator_options(TENDON_TTNN_SIM);                 \
  options.call_deadline_s = 240

// Results and some operands have 8 bits: PCC 0.9999, and as much of the largest value as four times
// the mean error. The library's attention rounds inside too: PCC 0.999.
const Bounds kRounded = Bounds::of_noise(.014, .056), kAttention = Bounds::of_noise(.045, .18);

// ---- Every call ----

// The library on the simulator and the fake device do the same.
class Bench {
 public:
  explicit Bench(std::unique_ptr<TtApi> library) : board(std::move(library)) {}

  void compare_recorded(const Case& c) {
    const Recording from("ops/" + c.name + ".safetensors");
    expect_same(c.name, c.request.call, play(c, from, board), play(c, from, fake_),
                c.request.call == Call::attention ? kAttention : kRounded);
  }
  // The inputs are noise: of f32 angles up to some hundreds of turns, of u8 any byte.
  void compare_call(const std::string& what, Request r, const std::vector<Spec>& inputs) {
    Request same = r;
    for (const Spec& x : inputs) {
      Values values = noise(x.dims, ++seed_);
      for (float& v : values) {
        if (x.format == Format::f32) v *= 600;
        if (x.format == Format::u8) v = std::fmod(std::floor(100 * std::abs(v)), 256.f);
      }
      r.inputs.push_back(board.put(x, values));
      same.inputs.push_back(fake_.put(x, values));
    }
    if (r.call == Call::linear) r.inputs.push_back(0), same.inputs.push_back(0);
    std::vector<Output> got = board.run_all(r), expected = fake_.run_all(same);
    if (r.call == Call::copy) {
      got.push_back({r.inputs[1], inputs[1]});
      expected.push_back({same.inputs[1], inputs[1]});
    }
    expect_same(what, r.call, got, expected, kRounded);
  }

  Board board;
  std::set<Call> tried;

 private:
  void expect_same(const std::string& what, Call call, const std::vector<Output>& got,
                   const std::vector<Output>& expected, const Bounds& bounds) {
    SCOPED_TRACE(what);
    tried.insert(call);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(to_string(got[i].spec), to_string(expected[i].spec));
      const Comparison r = compare(board.get(got[i]), fake_.get(expected[i]));
      fmt::print("{:34} pcc {:.7f} max error {:.5f} of {:.3f} relative l2 {:.6f}\n", what, r.pcc,
                 r.max_error, r.scale, r.relative_l2);
      EXPECT_EQ(beyond(bounds, r), "");
    }
  }

  Board fake_;
  uint64_t seed_ = 0;
};

// What was not recorded.
void compare_others(Bench& b) {
  const Spec x{{1, 2, 64, 96}}, y{{1, 2, 51, 64}}, row{{1, 1, 1, 64}}, tile{{1, 1, 32, 32}};
  b.compare_call("reshape", {.call = Call::reshape, .dims = {1, 1, 128, 96}}, {x});
  b.compare_call("copy", {.call = Call::copy}, {tile, tile});
  b.compare_call("typecast to L1", {.call = Call::typecast, .memory = Memory::l1}, {x});
  b.compare_call("permute", {.call = Call::permute}, {{{1, 6, 4, 14}}});
  const Spec bytes{{1, 1, 42, 56}, Format::u8}, angles{{1, 1, 32, 32}, Format::f32};
  b.compare_call("typecast of bytes", {.call = Call::typecast}, {bytes});
  b.compare_call("sin", {.call = Call::sin}, {angles});
  b.compare_call("cos", {.call = Call::cos}, {angles});
  b.compare_call("multiply rows in f32", {.call = Call::multiply},
                 {angles, {{1, 1, 32, 1}, Format::f32}});
  b.compare_call("add", {.call = Call::add}, {y, y});
  b.compare_call("multiply by one row", {.call = Call::multiply}, {y, row});
  b.compare_call("multiply_scalar", {.call = Call::multiply_scalar, .scalar = -.1F}, {y});
  b.compare_call("linear, batch", {.call = Call::linear, .activation = Activation::gelu_tanh},
                 {{{2, 1, 51, 64}}, {{1, 1, 64, 32}}});
  b.compare_call("linear, multicast 2D, bfp8 out",
                 {.call = Call::linear,
                  .format = Format::bfp8,
                  .activation = Activation::gelu_tanh,
                  .blocks = {Blocks::Kind::multicast_2d, 2, 2, 2, 1, 1, 1, 1}},
                 {{{1, 1, 64, 128}}, {{1, 1, 128, 64}}});
  b.compare_call("linear, multicast 1D, L1",
                 {.call = Call::linear,
                  .memory = Memory::l1,
                  .blocks = {Blocks::Kind::multicast_1d, 2, 2, 2, 1, 2, 1, 2}},
                 {{{1, 1, 32, 128}}, {{1, 1, 128, 256}}});
  b.compare_call("rms_norm, 48 columns", {.call = Call::rms_norm, .scalar = 1e-6F},
                 {{{1, 1, 51, 48}}, {{1, 1, 1, 48}}});
  b.compare_call("layer_norm, 48 columns", {.call = Call::layer_norm, .scalar = 1e-6F},
                 {{{1, 1, 51, 48}}, {{1, 1, 1, 48}}, {{1, 1, 1, 48}}});
}

// Of the recorded calls one per kind that was not tried yet, or all: the simulator takes minutes.
void compare_all(Bench& bench, bool recorded) {
  compare_others(bench);
  for (const Case& c : recorded_cases())
    if (recorded || !bench.tried.contains(c.request.call)) bench.compare_recorded(c);
  for (int i = 0; i < kCallCount; ++i)
    EXPECT_TRUE(bench.tried.contains(static_cast<Call>(i))) << name(static_cast<Call>(i));
}

TEST(TtnnSimulator, every_call_does_what_it_does_on_the_fake_device) {
  OPTIONS_OR_SKIP(options);
  Bench bench(open_worker(options));
  const Caps& caps = bench.board.api().caps();
  EXPECT_EQ(caps.description, "TTNN library on a simulated Wormhole");
  EXPECT_FALSE(caps.fast_dispatch);
  compare_all(bench, false);
}

TEST(TtnnSimulator, slow_every_recorded_call_does_so_too) {
  OPTIONS_OR_SKIP(options);
  Bench bench(open_worker(options));
  compare_all(bench, true);
}

// ---- When a piece falls ----

// A device in a product that takes the simulator minutes. The library returns before it is done;
// the next call waits for it.
struct Busy {
  explicit Busy(const WorkerOptions& options)
      : board(open_worker(options)), family(await_running(getpid(), "server.py")) {
    const TensorId x = board.put({1, 1, 1024, 1024}, 1);
    product = {.call = Call::linear, .inputs = {x, x, 0}};
    board.run(product);
  }
  Board board;
  std::vector<Running> family;
  Request product;
};

TEST(TtnnSimulator, a_worker_killed_in_the_middle_of_a_call_is_a_lost_device) {
  OPTIONS_OR_SKIP(options);
  Busy busy(options);
  ASSERT_GT(find_running(busy.family, "server.py").id, 0) << "no simulator";
  EXPECT_SAYS(
      lose(busy.board, busy.product, busy.family, [&] { kill(busy.family[1].id, SIGKILL); }),
      "signal 9 (Killed)");
}

TEST(TtnnSimulator, a_simulator_that_ends_is_a_lost_device) {
  OPTIONS_OR_SKIP(options);
  Busy busy(options);
  EXPECT_SAYS(lose(busy.board, busy.product, busy.family,
                   [&] { kill(find_running(busy.family, "server.py").id, SIGKILL); }),
              "the simulator (process");
}

TEST(TtnnSimulator, a_call_past_its_deadline_ends_the_simulator) {
  OPTIONS_OR_SKIP(options);
  options.call_deadline_s = 6;
  Busy busy(options);
  EXPECT_SAYS(lose(busy.board, busy.product, busy.family), "linear took longer than 6 s");
}

TEST(TtnnSimulator, nothing_runs_on_when_tendon_is_killed) {
  OPTIONS_OR_SKIP(options);
  expect_all_end_with_tendon(options, "server.py");
}

TEST(TtnnSimulator, nothing_stays_in_shared_memory) {
  OPTIONS_OR_SKIP(options);
  const std::set<std::string> before = shared_memory_names();
  Board(open_worker(options)).put({1, 1, 64, 64}, 1);
  EXPECT_EQ(shared_memory_names(), before);
}

}  // namespace
}  // namespace tendon::tt
