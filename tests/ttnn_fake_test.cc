// labels: unit
// The fake TTNN device: what it refuses, how it counts memory, traces, failures.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "tensor/bf16.h"
#include "tensor/random.h"
#include "test_files.h"
#include "ttnn_board.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;

Values noise(const Dims& dims, uint64_t seed) {
  Values v(size_of(dims));
  normal_noise(seed, 0, v);
  return v;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// ---- Tiles ----

TEST(Tiles, are_counted_with_their_padding) {
  EXPECT_EQ(byte_size({{1, 1, 33, 32}, Format::bf16}), 2 * 2048);
  EXPECT_EQ(byte_size({{2, 1, 1, 1}, Format::bfp8}), 2 * 1088);
  EXPECT_EQ(byte_size({{1, 1, 33, 3}, Format::bf16, Layout::row_major}), 33 * 3 * 2);
  EXPECT_EQ(padded({{1, 2, 33, 72}}), (Dims{1, 2, 64, 96}));
  EXPECT_EQ(to_string({{1, 1, 64, 96}, Format::bfp8, Layout::tile, Memory::l1}),
            "[1, 1, 64, 96] bfp8 tile l1");
}

TEST(Tiles, give_back_what_fits_their_format) {
  const Dims dims{2, 3, 37, 45};
  Values whole(size_of(dims)), half = noise(dims, 1);
  std::iota(whole.begin(), whole.end(), 0.0f);
  for (float& v : half) v = from_bf16(to_bf16(v));
  const Spec ids{dims, Format::u32, Layout::row_major};
  EXPECT_EQ(unpack(ids, pack(ids, whole)), whole);
  for (const Layout layout : {Layout::tile, Layout::row_major}) {
    const Spec spec{dims, Format::bf16, layout};
    EXPECT_EQ(std::ssize(pack(spec, half)), byte_size(spec));
    EXPECT_EQ(unpack(spec, pack(spec, half)), half);
  }
}

TEST(Tiles, are_zero_beyond_the_values) {
  const auto bytes = pack({{2, 1, 33, 20}}, Values(2 * 33 * 20, 1.0f));
  Values stored(2 * 64 * 32);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = bytes[2 * i + 1] == std::byte{0x3F};
  EXPECT_EQ(std::accumulate(stored.begin(), stored.end(), 0.0f), 2 * 33 * 20);
}

TEST(Tiles, of_bfp8_lose_nothing_the_second_time) {
  const Spec spec{{2, 1, 50, 72}, Format::bfp8};
  const Values once = unpack(spec, pack(spec, noise(spec.dims, 2)));
  EXPECT_EQ(unpack(spec, pack(spec, once)), once);
  Board board;
  EXPECT_EQ(board.get({board.put(spec, once), spec}), once);
}

TEST(Tiles, of_bfp8_are_within_one_part_in_128_of_the_largest_of_sixteen) {
  const Spec spec{{1, 1, 64, 64}, Format::bfp8};
  const Values in = noise(spec.dims, 3), out = unpack(spec, pack(spec, in));
  for (size_t i = 0; i < in.size(); i += 16) {
    float top = 0;
    for (size_t j = 0; j < 16; ++j) top = std::max(top, std::abs(in[i + j]));
    for (size_t j = 0; j < 16; ++j) EXPECT_LE(std::abs(in[i + j] - out[i + j]), top / 64);
  }
}

TEST(Tiles, packed_row_by_row_or_on_threads_are_the_same_bytes) {
  const Spec spec{{2, 1, 700, 410}, Format::bfp8};  // large enough for threads
  const Values v = noise(spec.dims, 4);
  Values matrix(v.begin() + 700 * 410, v.end());
  const Spec second{{1, 1, 700, 410}, Format::bfp8};
  const auto rows = pack_rows(second, [&](int64_t r, std::span<float> to) {
    std::copy_n(matrix.begin() + r * 410, 410, to.begin());
  });
  const auto all = pack(spec, v);
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), all.end() - std::ssize(rows)));
}

// ---- Calls that the recordings lack ----

TEST(Fake, reshapes_slices_and_pads_in_the_order_of_logical_values) {
  Board board;
  Values v(6 * 40);
  std::iota(v.begin(), v.end(), 0.0f);
  const TensorId x = board.put({{1, 1, 6, 40}}, v);
  EXPECT_EQ(board.get(board.run({.call = Call::reshape, .inputs = {x}, .dims = {1, 2, 8, 15}})), v);
  const Output part =
      board.run({.call = Call::slice, .inputs = {x}, .begin = {0, 0, 1, 3}, .dims = {1, 1, 3, 5}});
  EXPECT_EQ(board.get(part), (Values{v[43], v[44], v[83], v[84]}));
  const Output more =
      board.run({.call = Call::pad, .inputs = {part.id}, .dims = {1, 2, 2, 3}, .scalar = 7});
  EXPECT_EQ(board.get(more), (Values{v[43], v[44], 7, v[83], v[84], 7, 7, 7, 7, 7, 7, 7}));
}

TEST(Fake, repeats_the_axes_of_y_that_are_1) {
  Board board;
  const TensorId x = board.put({{1, 2, 2, 2}}, {1, 2, 3, 4, 5, 6, 7, 8});
  const TensorId row = board.put({{1, 1, 1, 2}}, {10, 20}),
                 column = board.put({{1, 1, 2, 1}}, {2, 3});
  EXPECT_EQ(board.get(board.run({.call = Call::add, .inputs = {x, row}})),
            (Values{11, 22, 13, 24, 15, 26, 17, 28}));
  EXPECT_EQ(board.get(board.run({.call = Call::multiply, .inputs = {x, column}})),
            (Values{2, 4, 9, 12, 10, 12, 21, 24}));
}

TEST(Fake, adds_one_row_per_head_to_every_batch) {
  Board board;
  const TensorId x = board.put({{2, 2, 1, 2}}, {1, 2, 3, 4, 5, 6, 7, 8});
  const TensorId y = board.put({{1, 2, 1, 2}}, {10, 20, 30, 40});
  EXPECT_EQ(board.get(board.run({.call = Call::add, .inputs = {x, y}})),
            (Values{11, 22, 33, 44, 15, 26, 37, 48}));
}

TEST(Fake, norms_add_epsilon_to_the_mean_square) {
  Board board;
  Request norm{.call = Call::rms_norm, .inputs = {board.put({{1, 1, 1, 2}}, {3, -3}), 0}};
  norm.scalar = 7;
  EXPECT_EQ(board.get(board.run(norm)), (Values{0.75f, -0.75f}));
  norm.call = Call::layer_norm;
  norm.inputs.push_back(0);
  EXPECT_EQ(board.get(board.run(norm)), (Values{0.75f, -0.75f}));
}

TEST(Fake, turns_every_head_by_its_rows_angle) {
  Board board;
  const Dims d{1, 2, 3, 32};
  Values x(size_of(d)), cos(3 * 32), none(3 * 32);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(1 + i / 32);  // head and row
  for (size_t i = 0; i < cos.size(); ++i) cos[i] = static_cast<float>(1 + i / 32);
  const Output y = board.run({.call = Call::rotary,
                              .inputs = {board.put({d}, x), board.put({{1, 1, 3, 32}}, cos),
                                         board.put({{1, 1, 3, 32}}, none)}});
  const Values turned = board.get(y);  // [1, 2, 32, 32]
  for (const size_t row : {0U, 1U, 2U, 3U, 31U}) {
    const auto times = static_cast<float>(row < 3 ? row + 1 : 0);
    EXPECT_EQ(turned[row * 32], times * times);
    EXPECT_EQ(turned[(32 + row) * 32], (times + 3) * times);
  }
}

TEST(Fake, rounds_a_scalar_to_the_format_it_meets) {
  Board board;
  const Dims one{1, 1, 1, 1};
  Request times{.call = Call::multiply_scalar, .scalar = -0.1f};
  times.inputs = {board.put(one, 1)};
  EXPECT_EQ(board.get(board.run(times))[0], -0.10009765625f);
}

TEST(Fake, writes_bfp8_with_ties_away_from_zero) {
  Board board;
  // 1 sets the exponent: a magnitude counts in steps of 1/64.
  const Values ties = {1, 2.5f / 64, -2.5f / 64, 3.5f / 64};
  const Output y = board.run({.call = Call::typecast,
                              .inputs = {board.put({{1, 1, 1, 4}}, ties)},
                              .format = Format::bfp8});
  EXPECT_EQ(board.get(y), (Values{1, 3.0f / 64, -3.0f / 64, 4.0f / 64}));
}

TEST(Fake, first_rounds_each_value_of_an_f32_accumulator_to_seven_bits) {
  Board board;
  // 2.49 / 64 becomes 2.5 / 64 on its own, and then 3 / 64 under the exponent of 1.
  Request product{.call = Call::linear, .format = Format::bfp8};
  product.inputs = {board.put({{1, 1, 1, 2}}, {1, 1}),
                    board.put({{1, 1, 2, 2}}, {1, 2.484375f / 64, 0, 0.005859375f / 64}), 0};
  EXPECT_EQ(board.get(board.run(product)), (Values{1, 3.0f / 64}));
}

TEST(Fake, attends_in_groups_and_in_batches) {
  Board board;
  // Keys are equal, so that every query takes the mean of its group's values.
  const TensorId q = board.put({2, 4, 32, 32}, 1), k = board.put({2, 2, 64, 32}, 1);
  Values v(2 * 2 * 64 * 32);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i / (64 * 32));
  Request request{.call = Call::attention, .inputs = {q, k, board.put({{2, 2, 64, 32}}, v), 0}};
  const Values y = board.get(board.run(request));
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], static_cast<float>(i / (2 * 32 * 32)));
  // A mask of the second batch alone hides the first half of its keys.
  Values mask(2 * 32 * 64, 0.0f);
  for (size_t i = 32 * 64; i < mask.size(); ++i) mask[i] = i % 64 < 32 ? -1e9f : 0.0f;
  Values halves(v.size());
  for (size_t i = 0; i < v.size(); ++i) halves[i] = i / 32 % 64 < 32 ? 2.0f : 4.0f;
  request.inputs = {q, k, board.put({{2, 2, 64, 32}}, halves), board.put({{2, 1, 32, 64}}, mask)};
  const Values z = board.get(board.run(request));
  EXPECT_EQ(z.front(), 3);
  EXPECT_EQ(z.back(), 4);
}

// Every product, norm, attention and value of a small network, on any number of threads.
TEST(Fake, gives_the_same_bits_on_every_number_of_threads) {
  const auto play = [](int threads) {
    Board board({.threads = threads});
    const Dims d{1, 1, 130, 512};
    const TensorId x = board.put({d}, noise(d, 6)),
                   w = board.put({{1, 1, 512, 768}}, noise({1, 1, 512, 768}, 7));
    const Output n = board.run({.call = Call::rms_norm, .inputs = {x, 0}, .scalar = 1e-6f});
    const Output y =
        board.run({.call = Call::linear, .inputs = {n.id, w, 0}, .format = Format::bfp8});
    const auto heads = board.run_all(
        {.call = Call::create_qkv_heads, .inputs = {y.id}, .heads = 4, .kv_heads = 4});
    const Output a = board.run({.call = Call::attention,
                                .inputs = {heads[0].id, heads[1].id, heads[2].id, 0},
                                .scalar = 0.125f});
    return board.get(board.run({.call = Call::add, .inputs = {a.id, a.id}}));
  };
  const Values one = play(1);
  for (const int threads : {2, 3, 7}) EXPECT_EQ(play(threads), one) << threads;
}

TEST(Fake, without_arithmetic_takes_no_bytes_and_gives_specs_and_zeros) {
  Board board({.compute = false});
  EXPECT_TRUE(board.api().caps().shapes_only);
  const TensorId x = board.api().upload({{1, 1, 50, 64}}, {}).outputs.at(0).id;
  const TensorId w = board.put({1, 1, 64, 96}, 2);
  const Output y = board.run(
      {.call = Call::linear, .inputs = {x, w, 0}, .format = Format::bfp8, .memory = Memory::l1});
  EXPECT_EQ(to_string(y.spec), "[1, 1, 50, 96] bfp8 tile l1");
  EXPECT_EQ(board.get(y), Values(50 * 96));
  EXPECT_EQ(board.use().l1, 72 * 1088);  // six tiles, but every core sets one aside
}

// ---- Memory ----

TEST(FakeMemory, is_counted_and_comes_back) {
  Board board;
  const TensorId x = board.put({1, 1, 64, 64}, 1);
  EXPECT_EQ(board.use().dram, 8192);
  const Output y = board.run({.call = Call::typecast, .inputs = {x}, .memory = Memory::l1});
  EXPECT_EQ(board.use().l1, 72 * 2048);
  board.api().release(x);
  board.api().release(y.id);
  const FakeUse use = board.use();
  EXPECT_EQ(use.dram + use.l1 + use.tensors, 0);
  EXPECT_EQ(use.dram_peak + use.l1_peak, 8192 + 72 * 2048);
}

TEST(FakeMemory, of_a_reshape_that_moves_nothing_is_shared) {
  Board board;
  const TensorId x = board.put({1, 1, 64, 64}, 1);
  const Output view = board.run({.call = Call::reshape, .inputs = {x}, .dims = {1, 2, 32, 64}});
  EXPECT_EQ(board.use().dram, 8192);
  board.api().release(x);
  EXPECT_EQ(board.use().dram, 8192);
  EXPECT_EQ(board.get(view), Values(4096, 1));
  board.run({.call = Call::reshape, .inputs = {view.id}, .dims = {1, 1, 128, 32}});
  EXPECT_EQ(board.use().dram, 2 * 8192);
}

TEST(FakeMemory, refuses_what_does_not_fit_and_says_how_much_is_there) {
  Board board({.dram_bytes = 20'000});
  const TensorId x = board.put({1, 1, 64, 64}, 1);
  EXPECT_EQ(
      board.refusal({.call = Call::concat, .inputs = {x, x}, .axis = 2}, Status::out_of_memory),
      "DRAM asked for 16384 bytes, but 8192 of 20000 are in use and 11808 available");
  const Spec large{{1, 1, 96, 64}};
  EXPECT_EQ(board.api().upload(large, std::vector<std::byte>(12288)).status, Status::out_of_memory);
  EXPECT_EQ(board.use().dram, 8192);
  board.put({1, 1, 32, 64}, 1);  // what still fits is taken
}

// The library: "bank size is 1393312 B" on cores of 1,499,136.
TEST(FakeMemory, of_l1_is_what_every_core_has_above_the_firmware) {
  Board board({.grid_x = 2, .grid_y = 2, .l1_bytes = 1'499'136 - 1'393'312 + 3 * 2048});
  Request move{.call = Call::typecast, .memory = Memory::l1};
  move.inputs = {board.put({1, 1, 32, 13 * 32}, 1)};  // 13 tiles on 4 cores: 4 on the first
  EXPECT_TRUE(contains(board.refusal(move, Status::out_of_memory), "0 of 24576 are in use"));
  move.inputs = {board.put({1, 1, 32, 12 * 32}, 1)};
  board.run(move);
}

// ---- Traces ----

TEST(FakeTrace, replays_into_the_same_tensors) {
  Board board;
  const TensorId x = board.put({1, 1, 32, 32}, 2);
  TtApi& api = board.api();
  ASSERT_EQ(api.begin_trace(), Status::ok);
  const Output y = board.run({.call = Call::multiply_scalar, .inputs = {x}, .scalar = 1.5f});
  const Output z = board.run({.call = Call::multiply, .inputs = {y.id, y.id}});
  api.release(y.id);
  const TensorId trace = api.end_trace().outputs.at(0).id;
  EXPECT_EQ(board.get(z), Values(1024, 9));
  const int64_t used = board.use().dram;
  EXPECT_EQ(used, 2 * 2048);  // y's memory is free between replays
  ASSERT_EQ(api.replay_trace(trace), Status::ok) << api.last_error();
  EXPECT_EQ(board.get(z), Values(1024, 9));
  EXPECT_EQ(board.use().dram, used);
  api.release_trace(trace);
  EXPECT_EQ(api.replay_trace(trace), Status::illegal);
}

TEST(FakeTrace, keeps_what_it_reads_and_writes_until_it_is_released) {
  Board board;
  TtApi& api = board.api();
  const TensorId x = board.put({1, 1, 32, 32}, 2);
  ASSERT_EQ(api.begin_trace(), Status::ok);
  const Output y = board.run({.call = Call::typecast, .inputs = {x}});
  const TensorId trace = api.end_trace().outputs.at(0).id;
  api.release(x);
  api.release(y.id);
  EXPECT_EQ(board.use().tensors, 0);
  EXPECT_EQ(board.use().dram, 2 * 2048);
  EXPECT_EQ(api.replay_trace(trace), Status::ok);
  api.release_trace(trace);
  EXPECT_EQ(board.use().dram, 0);
}

TEST(FakeTrace, allows_no_transfer_and_no_second_capture_inside) {
  Board board;
  TtApi& api = board.api();
  const Output x{board.put({1, 1, 32, 32}, 2), {{1, 1, 32, 32}}};
  EXPECT_EQ(api.end_trace().status, Status::illegal);
  ASSERT_EQ(api.begin_trace(), Status::ok);
  Values to(1024);
  EXPECT_EQ(api.begin_trace(), Status::illegal);
  EXPECT_EQ(api.download(x.id, to), Status::illegal);
  EXPECT_EQ(api.upload(x.spec, pack(x.spec, to)).status, Status::illegal);
  EXPECT_EQ(api.replay_trace(1), Status::illegal);
  EXPECT_EQ(api.end_trace().status, Status::ok);
  EXPECT_EQ(api.download(x.id, to), Status::ok);
}

TEST(FakeTrace, needs_fast_dispatch) {
  Board board({.fast_dispatch = false});
  EXPECT_EQ(board.api().begin_trace(), Status::unsupported);
  EXPECT_FALSE(board.api().caps().fast_dispatch);
}

// ---- Failures ----

TEST(FakeFailure, of_the_device_is_final) {
  for (const Status status : {Status::device_lost, Status::deadline}) {
    Board board({.fail_at = 2, .fail_status = status});
    const TensorId x = board.put({1, 1, 32, 32}, 2);
    const Request request{.call = Call::typecast, .inputs = {x}};
    const Output y = board.run(request);
    EXPECT_TRUE(contains(board.refusal(request, status), std::string(name(status))));
    Values to(1024);
    EXPECT_EQ(board.api().run(request).status, Status::device_lost);
    EXPECT_EQ(board.api().download(y.id, to), Status::device_lost);
    EXPECT_EQ(board.api().upload(y.spec, pack(y.spec, to)).status, Status::device_lost);
    EXPECT_EQ(board.api().begin_trace(), Status::device_lost);
  }
}

TEST(FakeFailure, of_one_call_leaves_the_others_alone) {
  Board board({.fail_at = 1, .fail_status = Status::out_of_memory});
  const Request request{.call = Call::typecast, .inputs = {board.put({1, 1, 32, 32}, 0)}};
  board.refusal(request, Status::out_of_memory);
  EXPECT_EQ(board.get(board.run(request)), Values(1024));
}

}  // namespace
}  // namespace tendon::tt
