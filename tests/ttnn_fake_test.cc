// labels: unit
// The fake TTNN device: values, memory and traces. What it refuses is held by ttnn_rules_test.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tensor/bf16.h"
#include "tensor/compare.h"
#include "ttnn_cases.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;

// ---- Tiles ----

TEST(Tiles, are_counted_with_their_padding) {
  EXPECT_EQ(byte_size({{1, 1, 33, 32}, Format::bf16}), 2 * 2048);
  EXPECT_EQ(byte_size({{2, 1, 1, 1}, Format::bfp8}), 2 * 1088);
  EXPECT_EQ(byte_size({{1, 1, 33, 3}, Format::bf16, Layout::row_major}), 33 * 3 * 2);
  EXPECT_EQ(padded({{1, 2, 33, 72}}), (Dims{1, 2, 64, 96}));
  EXPECT_EQ(to_string({{1, 1, 64, 96}, Format::bfp8, Layout::tile, Memory::l1}),
            "[1, 1, 64, 96] bfp8 tile l1");
}

TEST(Tiles, of_bfp8_lose_nothing_the_second_time) {
  Board board;
  const Spec spec{{2, 1, 50, 72}, Format::bfp8};
  const Values once = board.get({board.put(spec, noise(spec.dims, 2)), spec});
  EXPECT_NE(once, noise(spec.dims, 2));
  EXPECT_EQ(board.get({board.put(spec, once), spec}), once);
}

// ---- What the library answered on a simulated Wormhole: uploads ----

struct Uploaded : testing::TestWithParam<std::string> {
  const Recording recording{"pack.safetensors"};
  const Dims dims = recording.dims(GetParam() + ".in");
  Values stored(Format format) const {
    const Spec spec{dims, format};
    Board board;
    return board.get({board.put(spec, recording.values(GetParam() + ".in")), spec});
  }
};

TEST_P(Uploaded, bfp8_is_what_the_library_gives_back) {
  EXPECT_EQ(stored(Format::bfp8), recording.values(GetParam() + ".bfp8_back"));
}

TEST_P(Uploaded, bf16_is_what_the_library_stores) {
  Values expected;
  for (const double half : numbers(recording.at(GetParam() + ".bf16_rows")))  // as int16
    expected.push_back(from_bf16(static_cast<uint16_t>(static_cast<int>(half))));
  EXPECT_EQ(stored(Format::bf16), expected);
}

INSTANTIATE_TEST_SUITE_P(recorded, Uploaded,
                         testing::Values("normal", "wide", "integers", "ties", "edges"));

// ---- And calls ----

struct Recorded : testing::TestWithParam<Case> {};

TEST_P(Recorded, is_what_the_fake_device_answers) {
  const Case& c = GetParam();
  const Recording recording("ops/" + c.name + ".safetensors");
  Board board;
  const std::vector<Output> outputs = play(c, recording, board);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string which = fmt::format("out.{}", i);
    const Values library = recording.values(which), ours = board.get(outputs[i]);
    const Spec& spec = outputs[i].spec;
    EXPECT_EQ(spec.dims, recording.dims(which));
    EXPECT_EQ(board.get({board.put(spec, ours), spec}), ours);  // rounded to its format
    EXPECT_EQ(spec.format == Format::bfp8, recording.metadata("out_dtype").ends_with("BFLOAT8_B"));
    EXPECT_EQ(spec.layout == Layout::tile, recording.metadata("out_layout").ends_with("TILE"));
    const Comparison apart = compare(ours, library);
    EXPECT_LE(apart.relative_l2, c.relative_l2);
    EXPECT_LE(apart.max_error, 4 * c.relative_l2 * apart.scale);
  }
}

INSTANTIATE_TEST_SUITE_P(of_the_library, Recorded, testing::ValuesIn(recorded_cases()),
                         [](const auto& row) { return row.param.name; });

// ---- What neither these recordings nor the op table hold ----

TEST(Fake, rounds_a_scalar_to_bf16) {
  Board board;
  const TensorId one = board.put({1, 1, 1, 1}, 1);
  const Request times{.call = Call::multiply_scalar, .inputs = {one}, .scalar = -0.1f};
  EXPECT_EQ(board.get(board.run(times))[0], -0.10009765625f);
}

TEST(Fake, first_rounds_each_value_of_an_f32_accumulator_to_seven_bits) {
  Board board;
  // 2.49 / 64 becomes 2.5 / 64 on its own, and then 3 / 64 under the exponent of 1.
  Request product{.call = Call::linear, .format = Format::bfp8};
  product.inputs = {board.put({{1, 1, 1, 2}}, {1, 1}),
                    board.put({{1, 1, 2, 2}}, {1, 2.484375f / 64, 0, 0.005859375f / 64}), 0};
  EXPECT_EQ(board.get(board.run(product)), (Values{1, 3.0f / 64}));
}

// Every product and norm of a small network, on any number of threads.
TEST(Fake, gives_the_same_bits_on_every_number_of_threads) {
  const auto play = [](int threads) {
    Board board({.threads = threads});
    const Dims d{1, 1, 130, 512};
    const TensorId x = board.put({d}, noise(d, 6)), one = board.put({1, 1, 1, 512}, 1),
                   w = board.put({{1, 1, 512, 768}}, noise({1, 1, 512, 768}, 7));
    const Output n = board.run({.call = Call::rms_norm, .inputs = {x, one}, .scalar = 1e-6f});
    const Output y =
        board.run({.call = Call::linear, .inputs = {n.id, w, 0}, .format = Format::bfp8});
    const auto heads = board.run_all(
        {.call = Call::create_qkv_heads, .inputs = {y.id}, .heads = 4, .kv_heads = 4});
    return board.get(board.run({.call = Call::attention,
                                .inputs = {heads[0].id, heads[1].id, heads[2].id, 0},
                                .scalar = 0.125f}));
  };
  const Values one = play(1);
  for (const int threads : {2, 7}) EXPECT_EQ(play(threads), one) << threads;
}

TEST(Fake, without_arithmetic_takes_no_bytes_and_gives_specs_and_zeros) {
  Board board({.compute = false});
  EXPECT_TRUE(board.api().caps().shapes_only);
  const TensorId x = board.api().upload({{1, 1, 50, 64}}, {}).id;
  const TensorId w = board.put({1, 1, 64, 96}, 2);
  const Output y = board.run(
      {.call = Call::linear, .inputs = {x, w, 0}, .format = Format::bfp8, .memory = Memory::l1});
  EXPECT_EQ(to_string(y.spec), "[1, 1, 50, 96] bfp8 tile l1");
  EXPECT_EQ(board.get(y), Values(50 * 96));
}

// ---- Memory ----

// Room for three tensors of 8192 bytes.
struct FakeMemory : testing::Test {
  Board board{{.dram_bytes = 25'000}};
  const Dims dims{1, 1, 64, 64};
  TensorId x = board.put(dims, 1);
  Output twice() { return board.run({.call = Call::add, .inputs = {x, x}}); }
  std::string full() { return board.refusal({.call = Call::add, .inputs = {x, x}}, Fault::memory); }
};

TEST_F(FakeMemory, refuses_what_does_not_fit_and_comes_back) {
  const Output y = twice();
  EXPECT_EQ(board.refusal({.call = Call::concat, .inputs = {x, x}, .axis = 2}, Fault::memory),
            "[ttnn] out of memory: DRAM asked for 16384 bytes, but 16384 of 25000 are in use and "
            "8616 available");
  twice();
  full();
  board.api().release(y.id);
  twice();
}

TEST_F(FakeMemory, of_a_reshape_that_moves_nothing_is_shared) {
  Request view{.call = Call::reshape, .inputs = {x}, .dims = {1, 2, 32, 64}};
  const Output y = board.run(view);
  twice(), twice();
  board.api().release(x);
  EXPECT_EQ(board.get(y), Values(4096, 1));
  view.dims = {1, 1, 128, 32};  // other tiles
  view.inputs = {y.id};
  board.refusal(view, Fault::memory);
}

// The library: "bank size is 1393312 B" on cores of 1,499,136.
TEST(FakeL1, is_what_every_core_has_above_the_firmware) {
  Board board({.grid_x = 2, .grid_y = 2, .l1_bytes = 1'499'136 - 1'393'312 + 3 * 2048});
  Request move{.call = Call::typecast, .memory = Memory::l1};
  move.inputs = {board.put({1, 1, 32, 13 * 32}, 1)};  // 13 tiles on 4 cores: 4 on the first
  EXPECT_SAYS(board.refusal(move, Fault::memory), "0 of 24576 are in use");
  move.inputs = {board.put({1, 1, 32, 12 * 32}, 1)};
  board.run(move);
}

// ---- Traces ----

TEST_F(FakeMemory, of_a_trace_is_free_between_replays_but_for_what_it_reads_and_gives) {
  TtApi& api = board.api();
  api.begin_trace();
  const Output y = twice();
  const Output z = board.run({.call = Call::multiply, .inputs = {y.id, y.id}});
  api.release(y.id);
  const TensorId trace = api.end_trace();
  EXPECT_EQ(board.get(z), Values(4096, 4));
  api.release(x);
  api.replay_trace(trace);  // x, y and z fill the memory
  EXPECT_EQ(board.get(z), Values(4096, 4));
  x = board.put(dims, 1);
  EXPECT_EQ(refused([&] { api.replay_trace(trace); }).fault(), Fault::memory);
  api.release(trace);
  EXPECT_EQ(refused([&] { api.replay_trace(trace); }).fault(), Fault::internal);
  twice();
}

TEST(FakeTrace, allows_no_transfer_and_no_second_capture_inside) {
  Board board;
  TtApi& api = board.api();
  const Output x{board.put({1, 1, 32, 32}, 2), {{1, 1, 32, 32}}};
  Values to(1024);
  refused([&] { api.end_trace(); });
  api.begin_trace();
  refused([&] { api.begin_trace(); });
  refused([&] { api.download(x.id, to); });
  refused([&] { api.upload(x.spec, to); });
  refused([&] { api.replay_trace(1); });
  api.end_trace();
  api.download(x.id, to);
}

TEST(FakeTrace, needs_fast_dispatch) {
  Board board({.fast_dispatch = false});
  EXPECT_EQ(refused([&] { board.api().begin_trace(); }).fault(), Fault::backend);
  EXPECT_FALSE(board.api().caps().fast_dispatch);
}

}  // namespace
}  // namespace tendon::tt
