// labels: unit
// What the fake TTNN device refuses, as the library does, and what it says then.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>

#include "ttnn_board.h"

namespace tendon::tt {
namespace {

constexpr Format kBf16 = Format::bf16, kBfp8 = Format::bfp8, kU32 = Format::u32;
constexpr Layout kRows = Layout::row_major;
constexpr Dims kDims{1, 1, 64, 64};
const Spec kX{kDims}, kX8{kDims, kBfp8}, kXRows{kDims, kBf16, kRows}, kXFloats{kDims, Format::f32},
    kXBytes{kDims, Format::u8};
constexpr std::optional<Spec> kNone;

// `request` of tensors of zeros, on a device of its own.
void expect_refused(const Request& request, const std::vector<std::optional<Spec>>& inputs,
                    const std::string& words) {
  Board board;
  EXPECT_SAYS(board.refusal(board.with_zeros(request, inputs)), words);
}

TEST(Refused, is_what_is_not_there) {
  Board board;
  const TensorId gone = board.zeros(kX);
  board.api().release(gone);
  EXPECT_SAYS(board.refusal({.call = Call::add, .inputs = {board.zeros(kX), gone}}),
              "[add] got id 1, expected a tensor that was not released");
  const Spec ids{{1, 1, 1, 8}, kU32, kRows};
  const TensorId some = board.put(ids, {0, 1, 2, 3, 4, 5, 0, 0});
  EXPECT_SAYS(board.refusal({.call = Call::embedding,
                             .inputs = {some, board.zeros({{1, 1, 5, 64}, kBf16, kRows})}}),
              "[embedding] got id 5, expected less than the table's 5");
  expect_refused({.call = Call::concat}, {}, "[concat] got 0 inputs, expected 1");
  expect_refused({.call = Call::typecast}, {kNone},
                 "[typecast] got no x (input 0 is 0), expected a tensor");
  expect_refused({.call = Call::typecast}, {kX, kX}, "[typecast] got 2 inputs, expected 1");
}

TEST(Refused, are_movements_of_other_sizes_and_formats) {
  const Request beside{.call = Call::concat, .axis = 2};
  const auto slice = [](int64_t first, int64_t last) {
    return Request{.call = Call::slice, .begin = {0, 0, first, 0}, .dims = {1, 1, last, 64}};
  };
  expect_refused({.call = Call::reshape, .dims = {1, 1, 64, 65}}, {kX},
                 "expected as many values as [1, 1, 64, 65]");
  expect_refused(slice(9, 65), {kX},
                 "[slice] got [9, 65) of axis 2, expected a part of [1, 1, 64, 64] bf16 tile dram");
  expect_refused(slice(9, 9), {kX}, "[9, 9) of axis 2");
  expect_refused({.call = Call::pad, .dims = {1, 1, 64, 32}}, {kX},
                 "got [1, 1, 64, 32], expected at least x, [1, 1, 64, 64]");
  expect_refused(beside, {kX, Spec{{1, 1, 64, 65}}}, "input 1 is [1, 1, 64, 65]");
  expect_refused(beside, {kX, kX8}, "input 1 is [1, 1, 64, 64] bfp8");
  expect_refused({.call = Call::concat, .axis = 4}, {kX, kX}, "got axis 4");
  expect_refused({.call = Call::typecast, .format = kU32}, {kX}, "got output format u32");
  expect_refused({.call = Call::typecast, .format = kBfp8}, {kXRows}, "expected tile layout");
  expect_refused({.call = Call::permute}, {kX8}, "[permute] x is [1, 1, 64, 64] bfp8");
  expect_refused({.call = Call::add}, {kXBytes, kX},
                 "x is [1, 1, 64, 64] u8 tile dram, expected bf16");
  expect_refused({.call = Call::reshape, .dims = kDims}, {kXBytes}, "expected bf16 or bfp8");
  expect_refused({.call = Call::sin}, {kX},
                 "[sin] x is [1, 1, 64, 64] bf16 tile dram, expected f32");
  expect_refused({.call = Call::multiply}, {kXFloats, kX}, "expected f32 both or none");
  expect_refused({.call = Call::multiply_scalar}, {kXFloats},
                 "f32 tile dram, expected bf16 or bfp8");
}

TEST(Refused, are_values_that_do_not_meet) {
  const Request add{.call = Call::add}, lookup{.call = Call::embedding}, turn{.call = Call::rotary},
      norm{.call = Call::rms_norm, .scalar = 1e-6f};
  const Spec row{{1, 1, 1, 64}}, ids{{1, 1, 1, 8}, kU32, kRows}, wide{{1, 1, 32, 96}};
  expect_refused({.call = Call::multiply_scalar}, {kXRows},
                 "x is [1, 1, 64, 64] bf16 row_major dram, expected tile layout");
  expect_refused(add, {row, kX}, "expected axis 2 of x [1, 1, 1, 64] bf16 tile dram or 1");
  expect_refused(add, {kX, Spec{{1, 1, 50, 64}}}, "expected axis 2 of x");
  expect_refused(norm, {kX8, row}, "x is [1, 1, 64, 64] bfp8 tile dram, expected bf16");
  expect_refused(norm, {kX, Spec{{1, 1, 1, 32}}},
                 "scale is [1, 1, 1, 32] bf16 tile dram, expected [1, 1, 1, 64]");
  expect_refused({.call = Call::rms_norm}, {kX, row}, "got epsilon 0");
  expect_refused(lookup, {kXRows, Spec{{1, 1, 5, 64}, kBf16, kRows}}, "expected u32");
  expect_refused(lookup, {ids, Spec{{1, 1, 5, 64}}},
                 "table is [1, 1, 5, 64] bf16 tile dram, expected row_major");
  expect_refused(lookup, {ids, Spec{{1, 1, 5, 64}, kU32, kRows}}, "expected bf16");
  expect_refused(turn, {Spec{{1, 2, 32, 96}}, wide, wide},
                 "got a head of 96 columns, expected 32 or a multiple of 64");
  expect_refused(turn, {kX, kX8, kX}, "cos is");
  expect_refused(turn, {Spec{{2, 1, 64, 64}}, kX, kX}, "expected [1, 1, 64, 64]");
}

TEST(Refused, are_heads_masks_and_chunks_that_do_not_fit) {
  const Spec q{{1, 4, 32, 64}}, kv{{1, 2, 96, 64}}, mask{{1, 1, 32, 96}};
  const Request a{.call = Call::attention},
      split{.call = Call::create_qkv_heads, .heads = 2, .kv_heads = 1};
  const auto chunks = [](int64_t of_q, int64_t of_k) {
    return Request{.call = Call::attention, .chunks = {of_q, of_k}};
  };
  expect_refused(a, {Spec{{1, 4, 32, 72}}, kv, kv, mask},
                 "got a head of 72 columns, expected a multiple of 32");
  expect_refused(a, {Spec{{1, 3, 32, 64}}, kv, kv, mask}, "got 3 heads of q and 2 of k");
  expect_refused(a, {q, kv, Spec{{1, 2, 64, 64}}, mask},
                 "v is [1, 2, 64, 64] bf16 tile dram, expected [1, 2, 96, 64]");
  expect_refused(a, {q, kv, kv, Spec{{1, 1, 64, 96}}},
                 "mask is [1, 1, 64, 96] bf16 tile dram, expected [1, 1, 32, 96]");
  expect_refused(a, {q, kv, kv, Spec{mask.dims, kBfp8}}, "mask is");
  expect_refused(a, {Spec{{1, 4, 50, 64}}, kv, kv, Spec{{1, 1, 50, 96}}}, "got a mask for 50x96");
  expect_refused(chunks(48, 32), {q, kv, kv, mask},
                 "got chunks 48 and 32, expected multiples of 32");
  expect_refused(chunks(512, 1024), {q, kv, kv, mask}, "[attention] chunks need");
  expect_refused(split, {Spec{{1, 1, 32, 192}}}, "got a head of 48 columns");
  expect_refused(split, {Spec{{1, 1, 32, 130}}}, "expected [b, 1, m, 4 heads of d columns]");
  expect_refused({.call = Call::create_qkv_heads}, {Spec{{1, 1, 32, 128}}},
                 "got 0 heads and 0 kv heads");
  expect_refused({.call = Call::concat_heads}, {Spec{{1, 2, 32, 40}}}, "got a head of 40 columns");
}

// A linear of 8 x 8 x 8 tiles with these blocks, or with `change` made to them.
Request planned(const std::function<void(Blocks&)>& change = [](Blocks&) {}) {
  Request r{.call = Call::linear, .blocks = {Blocks::Kind::multicast_2d, 4, 4, 4, 2, 2, 2, 2}};
  change(r.blocks);
  return r;
}

TEST(Refused, are_products_and_blocks_that_do_not_fit) {
  const Spec x{{1, 1, 256, 256}}, row{{1, 1, 1, 256}};
  Request half = planned([](Blocks& b) { b.subblock_n = b.core_n = 5; });
  half.compute.f32_accumulate = false;
  expect_refused(planned(), {x, Spec{{1, 1, 224, 256}}, row},
                 "x is [1, 1, 256, 256] bf16 tile dram and w is [1, 1, 224, 256] bf16 tile dram, "
                 "expected w [1, 1, 256, n]");
  expect_refused(planned(), {x, x, Spec{{1, 1, 1, 255}}},
                 "bias is [1, 1, 1, 255] bf16 tile dram, expected [1, 1, 1, 256]");
  expect_refused(half, {x, x, row}, "got a subblock of 2x5 tiles, expected at most 8");
  const std::vector<std::pair<std::string, std::function<void(Blocks&)>>> changes = {
      {"planned for a grid of 13x4, but the device's grid is 8x9",
       [](Blocks& b) { b.grid_x = 13; }},
      {"got k_block 3, expected a divisor of k, 8 tiles", [](Blocks& b) { b.k_block = 3; }},
      {"got a subblock of 2x4 tiles, expected at most 4",
       [](Blocks& b) { b.subblock_n = b.core_n = 4; }},
      {"expected divisors of the core's 3x2", [](Blocks& b) { b.core_m = 3; }},
      {"are 8 down and 4 across, expected at most 4 and 4",
       [](Blocks& b) { b.core_m = b.subblock_m = 1; }},
      {"expected at most 1 and 16", [](Blocks& b) { b.kind = Blocks::Kind::multicast_1d; }},
      {"got a block of 0 tiles", [](Blocks& b) { b.k_block = 0; }},
      {"[linear] blocks need", [](Blocks& b) { b.k_block = 8, b.core_m = b.core_n = 16; }},
  };
  for (const auto& [says, change] : changes) expect_refused(planned(change), {x, x, row}, says);
}

// "Statically allocated circular buffers on core range [0-0 - 1-1] grow to N B which is beyond max
// L1 size of 1499136 B", says ttnn 0.81.1 of 24 x 64 x 24 tiles in blocks of 12 x 16 x 12.
TEST(Refused, are_blocks_beyond_l1_to_the_byte) {
  struct Row {
    int64_t bytes;
    bool f32_sums = true;
    Format y = kBf16, x = kBf16, w = kBf16;
    int64_t k = 2048;
    bool bias = false;
  };
  for (const Row& r : {Row{2'563'424},
                       {.bytes = 2'588'000, .bias = true},
                       {1'973'600, false},
                       {1'835'360, false, kBfp8},
                       {2'425'184, true, kBfp8},
                       {2'194'784, true, kBf16, kBf16, kBfp8},
                       {2'056'544, true, kBfp8, kBfp8},
                       {.bytes = 1'776'992, .k = 512},
                       {.bytes = 1'801'568, .k = 512, .bias = true}})
    expect_refused({.call = Call::linear,
                    .format = r.y,
                    .compute = {.f32_accumulate = r.f32_sums},
                    .blocks = {Blocks::Kind::multicast_2d, 2, 2, 16, 1, 1, 12, 12}},
                   {Spec{{1, 1, 768, r.k}, r.x}, Spec{{1, 1, r.k, 768}, r.w},
                    r.bias ? std::optional(Spec{{1, 1, 1, 768}}) : kNone},
                   fmt::format("blocks need {} bytes of L1", r.bytes));
}

TEST(Refused, are_chunks_beyond_l1_to_the_byte) {
  struct Row {
    int64_t bytes, q, k, d;
    bool masked, f32_sums;
    int64_t n = 512, heads = 8;
    Format format = kBf16;
  };
  for (const Row& r : {Row{2'700'640, 512, 512, 256, false, false},
                       {3'485'024, 512, 512, 256, false, true},
                       {3'749'216, 512, 512, 256, true, false},
                       {4'533'600, 512, 512, 256, true, true},
                       {1'914'208, 512, 256, 256, false, false},
                       {1'963'360, 256, 512, 256, false, false},
                       {1'750'368, 512, 512, 128, false, false},
                       {3'485'024, 512, 512, 128, true, true},
                       {2'159'968, 1024, 512, 64, false, false, 1024},
                       {4'158'816, 512, 1024, 64, true, false, 1024},
                       {5'320'032, 512, 1024, 64, true, true, 1024},
                       {1'535'328, 256, 256, 256, false, true},
                       {1'856'864, 128, 512, 256, true, false},
                       {2'962'784, 512, 512, 256, false, false, 512, 128},
                       {2'055'520, 512, 512, 256, false, false, 512, 8, kBfp8},
                       {3'796'320, 512, 512, 256, true, true, 512, 8, kBfp8}}) {
    const Spec kv{{1, 1, r.n, r.d}, r.format};
    expect_refused(
        {.call = Call::attention, .compute = {.f32_accumulate = r.f32_sums}, .chunks = {r.q, r.k}},
        {Spec{{1, r.heads, r.n, r.d}, r.format}, kv, kv,
         r.masked ? std::optional(Spec{{1, 1, r.n, r.n}}) : kNone},
        fmt::format("chunks need {} bytes of L1", r.bytes));
  }
}

// ---- What is legal ----

// The product of x and a weight of 8 x 8 tiles.
Request product(Board& board, const Request& request, const Dims& x) {
  return board.with_zeros(request, {Spec{x}, Spec{{1, 1, 256, 256}}, kNone});
}

TEST(Accepted, are_the_plan_that_covers_the_product_and_its_1d_form) {
  Board board;
  board.run(product(board, planned(), {1, 1, 256, 256}));
  board.run(product(board, planned(), {2, 1, 100, 256}));  // 2 x 4 tiles of rows
  const Request one_row = planned([](Blocks& b) {
    b.kind = Blocks::Kind::multicast_1d;
    b.core_m = b.subblock_m = 1;
  });
  board.run(product(board, one_row, {1, 1, 32, 256}));
}

TEST(Accepted, is_a_plan_that_the_grid_of_another_device_has_room_for) {
  Board small({.grid_x = 8, .grid_y = 7}), large({.grid_x = 13, .grid_y = 10});
  const Request wide = planned([](Blocks& b) { b.grid_y = 9; });
  EXPECT_SAYS(small.refusal(product(small, wide, {1, 1, 256, 256})), "8x7");
  large.run(product(large, wide, {1, 1, 256, 256}));
}

TEST(Accepted, are_fewer_blocks_while_tensors_lie_in_l1) {
  Board board;
  const Request large = product(
      board, planned([](Blocks& b) { b.k_block = 8, b.core_m = b.core_n = 10; }), {1, 1, 256, 256});
  board.run(large);
  // 600 KB of every core are taken.
  const Output taken = board.run(
      board.with_zeros({.call = Call::typecast, .memory = Memory::l1}, {Spec{{1, 1, 4096, 5408}}}));
  board.refusal(large);
  board.api().release(taken.id);
  board.run(large);
}

TEST(Accepted, are_ragged_pieces_of_bfp8_but_they_come_out_as_bf16) {
  Board board;
  const TensorId whole = board.zeros(kX8), ragged = board.zeros({{1, 1, 50, 64}, kBfp8});
  const auto sliced = [&](int64_t first, int64_t last) {
    return board
        .run({.call = Call::slice,
              .inputs = {whole},
              .begin = {0, 0, first, 0},
              .dims = {1, 1, last, 64}})
        .spec.format;
  };
  const auto joined = [&](std::vector<TensorId> inputs, int axis) {
    return board.run({.call = Call::concat, .inputs = inputs, .axis = axis}).spec.format;
  };
  EXPECT_EQ(sliced(32, 50), kBfp8);
  EXPECT_EQ(sliced(1, 64), kBf16);
  EXPECT_EQ(joined({whole, whole}, 2), kBfp8);
  EXPECT_EQ(joined({whole, ragged}, 2), kBf16);
  EXPECT_EQ(joined({ragged, whole}, 2), kBf16);
  EXPECT_EQ(joined({ragged, ragged}, 3), kBfp8);
  EXPECT_EQ(joined({ragged, ragged}, 1), kBfp8);
}

TEST(Accepted, is_a_rotation_of_ragged_rows_that_fills_the_last_tile) {
  Board board;
  const Spec turn{{1, 1, 50, 64}};
  const Output y =
      board.run(board.with_zeros({.call = Call::rotary}, {Spec{{1, 2, 50, 64}}, turn, turn}));
  EXPECT_EQ(y.spec.dims, (Dims{1, 2, 64, 64}));
}

}  // namespace
}  // namespace tendon::tt
