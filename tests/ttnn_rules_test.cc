// labels: unit
// What the fake TTNN device refuses, as the library does, and what it says then.
#include <gtest/gtest.h>

#include <functional>

#include "ttnn_board.h"

namespace tendon::tt {
namespace {

constexpr Format kBfp8 = Format::bfp8, kU32 = Format::u32;
constexpr Layout kRows = Layout::row_major;

struct Refusal {
  std::string name;
  std::function<Request(Board&)> request;
  std::string says;
};

void PrintTo(const Refusal& r, std::ostream* to) { *to << r.name; }

TensorId zeros(Board& board, const Dims& dims, Format format = Format::bf16,
               Layout layout = Layout::tile) {
  return board.put({dims, format, layout}, std::vector<float>(size_of(dims)));
}

// A refused call of tensors of zeros.
Refusal refusal(const std::string& name, const Request& request, const std::vector<Spec>& inputs,
                const std::string& says) {
  return {name,
          [=](Board& board) {
            Request r = request;
            for (const Spec& x : inputs)
              r.inputs.push_back(zeros(board, x.dims, x.format, x.layout));
            return r;
          },
          says};
}

std::vector<Refusal> movement_refusals() {
  const Dims d{1, 1, 64, 64};
  return {
      {"a_released_input",
       [=](Board& board) {
         const TensorId x = zeros(board, d);
         board.api().release(x);
         return Request{.call = Call::add, .inputs = {zeros(board, d), x}};
       },
       "[add] got id 1, expected a tensor that was not released"},
      {"no_input_at_all", [](Board&) { return Request{.call = Call::concat}; },
       "[concat] got 0 inputs, expected 1"},
      {"a_missing_input", [](Board&) { return Request{.call = Call::typecast, .inputs = {0}}; },
       "[typecast] got no x (input 0 is 0), expected a tensor"},
      refusal("a_reshape_of_other_size", {.call = Call::reshape, .dims = {1, 1, 64, 65}}, {{d}},
              "expected as many values as [1, 1, 64, 65]"),
      refusal("a_slice_beyond_its_end",
              {.call = Call::slice, .begin = {0, 0, 9, 0}, .dims = {1, 1, 65, 64}}, {{d}},
              "[slice] got [9, 65) of axis 2, expected a part of [1, 1, 64, 64] bf16 tile dram"),
      refusal("an_empty_slice", {.call = Call::slice, .begin = {0, 0, 9, 0}, .dims = {1, 1, 9, 64}},
              {{d}}, "[9, 9) of axis 2"),
      refusal("padding_to_less", {.call = Call::pad, .dims = {1, 1, 64, 32}}, {{d}},
              "got [1, 1, 64, 32], expected at least x, [1, 1, 64, 64]"),
      refusal("joining_of_unlike_widths", {.call = Call::concat, .axis = 2},
              {{d}, {{1, 1, 64, 65}}}, "input 1 is [1, 1, 64, 65]"),
      refusal("joining_of_unlike_formats", {.call = Call::concat, .axis = 2}, {{d}, {d, kBfp8}},
              "input 1 is [1, 1, 64, 64] bfp8"),
      refusal("joining_along_axis_4", {.call = Call::concat, .axis = 4}, {{d}, {d}}, "got axis 4"),
      refusal("a_typecast_to_integers", {.call = Call::typecast, .format = kU32}, {{d}},
              "got output format u32"),
      refusal("a_typecast_of_rows_to_bfp8", {.call = Call::typecast, .format = kBfp8},
              {{d, Format::bf16, kRows}}, "expected tile layout"),
      refusal("too_many_inputs", {.call = Call::typecast}, {{d}, {d}},
              "[typecast] got 2 inputs, expected 1"),
  };
}

std::vector<Refusal> value_refusals() {
  const Dims d{1, 1, 64, 64};
  const Spec x{d}, rows{d, Format::bf16, kRows};
  const Spec ids{{1, 1, 1, 8}, kU32, kRows}, table{{1, 1, 5, 64}, Format::bf16, kRows};
  return {
      refusal("arithmetic_on_rows", {.call = Call::multiply_scalar}, {rows},
              "x is [1, 1, 64, 64] bf16 row_major dram, expected tile layout"),
      refusal("an_add_that_repeats_x", {.call = Call::add}, {{{1, 1, 1, 64}}, x},
              "expected axis 2 of x [1, 1, 1, 64] bf16 tile dram or 1"),
      refusal("an_add_of_50_rows_to_64", {.call = Call::add}, {x, {{1, 1, 50, 64}}},
              "expected axis 2 of x"),
      refusal("a_norm_of_bfp8", {.call = Call::rms_norm, .scalar = 1e-6f},
              {{d, kBfp8}, {{1, 1, 1, 64}}}, "x is [1, 1, 64, 64] bfp8 tile dram, expected bf16"),
      refusal("a_norm_with_a_scale_of_other_width", {.call = Call::rms_norm, .scalar = 1e-6f},
              {x, {{1, 1, 1, 32}}},
              "scale is [1, 1, 1, 32] bf16 tile dram, expected [1, 1, 1, 64]"),
      refusal("a_norm_without_epsilon", {.call = Call::rms_norm}, {x, {{1, 1, 1, 64}}},
              "got epsilon 0"),
      refusal("ids_that_are_not_integers", {.call = Call::embedding}, {rows, table},
              "expected u32"),
      refusal("a_table_in_tiles", {.call = Call::embedding}, {ids, {{1, 1, 5, 64}}},
              "table is [1, 1, 5, 64] bf16 tile dram, expected row_major"),
      refusal("a_table_of_integers", {.call = Call::embedding}, {ids, {{1, 1, 5, 64}, kU32, kRows}},
              "expected bf16"),
      {"an_id_beyond_the_table",
       [=](Board& board) {
         const TensorId some = board.put(ids, {0, 1, 2, 3, 4, 5, 0, 0});
         return Request{.call = Call::embedding,
                        .inputs = {some, zeros(board, table.dims, table.format, kRows)}};
       },
       "[embedding] got id 5, expected less than the table's 5"},
      refusal("a_rotation_of_96_columns", {.call = Call::rotary},
              {{{1, 2, 32, 96}}, {{1, 1, 32, 96}}, {{1, 1, 32, 96}}},
              "got a head of 96 columns, expected 32 or a multiple of 64"),
      refusal("a_rotation_by_bfp8", {.call = Call::rotary}, {x, {d, kBfp8}, x}, "cos is"),
      refusal("a_rotation_of_two_batches", {.call = Call::rotary}, {{{2, 1, 64, 64}}, x, x},
              "expected [1, 1, 64, 64]"),
  };
}

std::vector<Refusal> attention_refusals() {
  const Spec q{{1, 4, 32, 64}}, kv{{1, 2, 96, 64}}, mask{{1, 1, 32, 96}};
  const Request a{.call = Call::attention};
  return {
      refusal("heads_of_72_columns", a, {{{1, 4, 32, 72}}, kv, kv, mask},
              "got a head of 72 columns, expected a multiple of 32"),
      refusal("heads_that_do_not_divide", a, {{{1, 3, 32, 64}}, kv, kv, mask},
              "got 3 heads of q and 2 of k"),
      refusal("v_of_other_rows", a, {q, kv, {{1, 2, 64, 64}}, mask},
              "v is [1, 2, 64, 64] bf16 tile dram, expected [1, 2, 96, 64]"),
      refusal("a_mask_of_other_rows", a, {q, kv, kv, {{1, 1, 64, 96}}},
              "mask is [1, 1, 64, 96] bf16 tile dram, expected [1, 1, 32, 96]"),
      refusal("a_mask_of_bfp8", a, {q, kv, kv, {mask.dims, kBfp8}}, "mask is"),
      refusal("a_mask_of_ragged_rows", a, {{{1, 4, 50, 64}}, kv, kv, {{1, 1, 50, 96}}},
              "got a mask for 50x96"),
      refusal("chunks_of_48_rows", {.call = Call::attention, .chunks = {48, 32}}, {q, kv, kv, mask},
              "got chunks 48 and 32, expected multiples of 32"),
      refusal("chunks_that_do_not_fit", {.call = Call::attention, .chunks = {512, 1024}},
              {q, kv, kv, mask}, "[attention] chunks need"),
      refusal("fused_heads_of_48_columns",
              {.call = Call::create_qkv_heads, .heads = 2, .kv_heads = 1}, {{{1, 1, 32, 192}}},
              "got a head of 48 columns"),
      refusal("fused_heads_that_do_not_divide",
              {.call = Call::create_qkv_heads, .heads = 2, .kv_heads = 1}, {{{1, 1, 32, 130}}},
              "expected [b, 1, m, 4 heads of d columns]"),
      refusal("fused_heads_without_heads", {.call = Call::create_qkv_heads}, {{{1, 1, 32, 128}}},
              "got 0 heads and 0 kv heads"),
      refusal("joining_heads_of_40_columns", {.call = Call::concat_heads}, {{{1, 2, 32, 40}}},
              "got a head of 40 columns"),
  };
}

// A linear of 8 x 8 x 8 tiles with these blocks, or with `change` made to them.
Request planned(const std::function<void(Request&)>& change = [](Request&) {}) {
  Request r{.call = Call::linear,
            .blocks = {.kind = Blocks::Kind::multicast_2d,
                       .grid_x = 4,
                       .grid_y = 4,
                       .k_block = 4,
                       .subblock_m = 2,
                       .subblock_n = 2,
                       .core_m = 2,
                       .core_n = 2}};
  change(r);
  return r;
}

std::vector<Refusal> linear_refusals() {
  const Spec x{{1, 1, 256, 256}}, w = x, row{{1, 1, 1, 256}};
  const auto with = [=](const std::string& name, const std::string& says, auto change) {
    return refusal(name, planned(change), {x, w, row}, says);
  };
  return {
      refusal("a_weight_of_other_rows", planned(), {x, {{1, 1, 224, 256}}, row},
              "x is [1, 1, 256, 256] bf16 tile dram and w is [1, 1, 224, 256] bf16 tile dram, "
              "expected w [1, 1, 256, n]"),
      refusal("a_bias_of_other_width", planned(), {x, w, {{1, 1, 1, 255}}},
              "bias is [1, 1, 1, 255] bf16 tile dram, expected [1, 1, 1, 256]"),
      with("a_plan_for_more_cores", "planned for a grid of 13x4, but the device's grid is 8x9",
           [](Request& r) { r.blocks.grid_x = 13; }),
      with("a_k_block_that_does_not_divide", "got k_block 3, expected a divisor of k, 8 tiles",
           [](Request& r) { r.blocks.k_block = 3; }),
      with("a_subblock_of_too_many_tiles", "got a subblock of 2x4 tiles, expected at most 4",
           [](Request& r) { r.blocks.subblock_n = r.blocks.core_n = 4; }),
      with("a_subblock_of_too_many_tiles_of_bf16",
           "got a subblock of 2x5 tiles, expected at most 8",
           [](Request& r) {
             r.compute.f32_accumulate = false;
             r.blocks.subblock_n = r.blocks.core_n = 5;
           }),
      with("a_subblock_that_does_not_divide", "expected divisors of the core's 3x2",
           [](Request& r) { r.blocks.core_m = 3; }),
      with("too_few_cores_down", "are 8 down and 4 across, expected at most 4 and 4",
           [](Request& r) { r.blocks.core_m = r.blocks.subblock_m = 1; }),
      with("rows_on_two_cores_of_the_1d_form", "expected at most 1 and 16",
           [](Request& r) { r.blocks.kind = Blocks::Kind::multicast_1d; }),
      with("a_block_of_no_tiles", "got a block of 0 tiles",
           [](Request& r) { r.blocks.k_block = 0; }),
      with("blocks_that_do_not_fit", "[linear] blocks need",
           [](Request& r) {
             r.blocks.k_block = 8;
             r.blocks.core_m = r.blocks.core_n = 16;
           }),
  };
}

// "Statically allocated circular buffers on core range [0-0 - 1-1] grow to N B which is beyond max
// L1 size of 1499136 B", says ttnn 0.81.1 of 24 x 64 x 24 tiles in blocks of 12 x 16 x 12.
Refusal measured_linear(const std::string& name, int64_t bytes, const Request& request = {},
                        Format x = Format::bf16, Format w = Format::bf16, int64_t k = 2048,
                        bool bias = false) {
  Request r = request;
  r.call = Call::linear;
  r.blocks = {.kind = Blocks::Kind::multicast_2d,
              .grid_x = 2,
              .grid_y = 2,
              .k_block = 16,
              .core_m = 12,
              .core_n = 12};
  return {"a_linear_of_" + name,
          [=](Board& board) {
            Request full = r;
            full.inputs = {zeros(board, {1, 1, 768, k}, x), zeros(board, {1, 1, k, 768}, w),
                           bias ? zeros(board, {1, 1, 1, 768}) : 0};
            return full;
          },
          "blocks need " + std::to_string(bytes) + " bytes of L1"};
}

Refusal measured_attention(int64_t bytes, int64_t q, int64_t k, int64_t d, bool masked, bool f32,
                           int64_t n = 512, int64_t heads = 8, Format format = Format::bf16) {
  const std::string name = "attention_" + std::to_string(q) + "_" + std::to_string(k) + "_" +
                           std::to_string(d) + (masked ? "_masked" : "") + (f32 ? "_f32" : "") +
                           "_" + std::to_string(heads) + "_" + std::string(tt::name(format));
  return {name,
          [=](Board& board) {
            const TensorId kv = zeros(board, {1, 1, n, d}, format);
            return Request{.call = Call::attention,
                           .inputs = {zeros(board, {1, heads, n, d}, format), kv, kv,
                                      masked ? zeros(board, {1, 1, n, n}) : 0},
                           .compute = {.f32_accumulate = f32},
                           .chunks = {q, k}};
          },
          "chunks need " + std::to_string(bytes) + " bytes of L1"};
}

std::vector<Refusal> measured_refusals() {
  const Format bf16 = Format::bf16;
  const Compute half{.f32_accumulate = false};
  return {
      measured_linear("bf16", 2'563'424),
      measured_linear("bf16_with_bias", 2'588'000, {}, bf16, bf16, 2048, true),
      measured_linear("bf16_sums", 1'973'600, {.compute = half}),
      measured_linear("bfp8_sums", 1'835'360, {.format = kBfp8, .compute = half}),
      measured_linear("bfp8_from_f32_sums", 2'425'184, {.format = kBfp8}),
      measured_linear("a_bfp8_weight", 2'194'784, {}, bf16, kBfp8),
      measured_linear("bfp8_by_bf16", 2'056'544, {.format = kBfp8}, kBfp8),
      measured_linear("an_uncut_k", 1'776'992, {}, bf16, bf16, 512),
      measured_linear("an_uncut_k_with_bias", 1'801'568, {}, bf16, bf16, 512, true),
      measured_attention(2'700'640, 512, 512, 256, false, false),
      measured_attention(3'485'024, 512, 512, 256, false, true),
      measured_attention(3'749'216, 512, 512, 256, true, false),
      measured_attention(4'533'600, 512, 512, 256, true, true),
      measured_attention(1'914'208, 512, 256, 256, false, false),
      measured_attention(1'963'360, 256, 512, 256, false, false),
      measured_attention(1'750'368, 512, 512, 128, false, false),
      measured_attention(3'485'024, 512, 512, 128, true, true),
      measured_attention(2'159'968, 1024, 512, 64, false, false, 1024),
      measured_attention(4'158'816, 512, 1024, 64, true, false, 1024),
      measured_attention(5'320'032, 512, 1024, 64, true, true, 1024),
      measured_attention(1'535'328, 256, 256, 256, false, true),
      measured_attention(1'856'864, 128, 512, 256, true, false),
      measured_attention(2'962'784, 512, 512, 256, false, false, 512, 128),
      measured_attention(2'055'520, 512, 512, 256, false, false, 512, 8, kBfp8),
      measured_attention(3'796'320, 512, 512, 256, true, true, 512, 8, kBfp8),
  };
}

std::vector<Refusal> all_refusals() {
  std::vector<Refusal> all = movement_refusals();
  for (const auto& more :
       {value_refusals(), attention_refusals(), linear_refusals(), measured_refusals()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

struct Refused : testing::TestWithParam<Refusal> {};

TEST_P(Refused, names_op_got_and_expected) {
  Board board;
  const Request request = GetParam().request(board);
  const std::string text = board.refusal(request);
  EXPECT_NE(text.find(GetParam().says), std::string::npos) << text;
}

INSTANTIATE_TEST_SUITE_P(of, Refused, testing::ValuesIn(all_refusals()),
                         [](const auto& row) { return row.param.name; });

// ---- What is legal ----

Output run_planned(Board& board, const Request& request, const Spec& x) {
  Request r = request;
  r.inputs = {zeros(board, x.dims, x.format), zeros(board, {1, 1, 256, 256}), 0};
  return board.run(r);
}

TEST(Accepted, are_the_plan_that_covers_the_product_and_its_1d_form) {
  Board board;
  run_planned(board, planned(), {{1, 1, 256, 256}});
  run_planned(board, planned(), {{2, 1, 100, 256}});  // 2 x 4 tiles of rows
  const Request one_row = planned([](Request& r) {
    r.blocks.kind = Blocks::Kind::multicast_1d;
    r.blocks.core_m = r.blocks.subblock_m = 1;
  });
  run_planned(board, one_row, {{1, 1, 32, 256}});
}

TEST(Accepted, is_a_plan_that_the_grid_of_another_device_has_room_for) {
  Board small({.grid_x = 8, .grid_y = 7}), large({.grid_x = 13, .grid_y = 10});
  const Request wide = planned([](Request& r) { r.blocks.grid_y = 9; });
  Request r = wide;
  r.inputs = {zeros(small, {1, 1, 256, 256}), zeros(small, {1, 1, 256, 256}), 0};
  EXPECT_NE(small.refusal(r).find("8x7"), std::string::npos);
  run_planned(large, wide, {{1, 1, 256, 256}});
}

TEST(Accepted, are_fewer_blocks_while_tensors_lie_in_l1) {
  Board board;
  const Request large = planned([](Request& r) {
    r.blocks.k_block = 8;
    r.blocks.core_m = r.blocks.core_n = 10;
  });
  run_planned(board, large, {{1, 1, 256, 256}});
  // 600 KB of every core are taken.
  const Output taken = board.run(
      {.call = Call::typecast, .inputs = {zeros(board, {1, 1, 4096, 5408})}, .memory = Memory::l1});
  Request r = large;
  r.inputs = {zeros(board, {1, 1, 256, 256}), zeros(board, {1, 1, 256, 256}), 0};
  board.refusal(r);
  board.api().release(taken.id);
  board.run(r);
}

TEST(Accepted, are_ragged_pieces_of_bfp8_but_they_come_out_as_bf16) {
  Board board;
  const TensorId whole = zeros(board, {1, 1, 64, 64}, kBfp8),
                 ragged = zeros(board, {1, 1, 50, 64}, kBfp8);
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
  EXPECT_EQ(sliced(1, 64), Format::bf16);
  EXPECT_EQ(joined({whole, whole}, 2), kBfp8);
  EXPECT_EQ(joined({whole, ragged}, 2), Format::bf16);
  EXPECT_EQ(joined({ragged, whole}, 2), Format::bf16);
  EXPECT_EQ(joined({ragged, ragged}, 3), kBfp8);
  EXPECT_EQ(joined({ragged, ragged}, 1), kBfp8);
}

TEST(Accepted, is_a_rotation_of_ragged_rows_that_fills_the_last_tile) {
  Board board;
  const TensorId x = zeros(board, {1, 2, 50, 64}), turn = zeros(board, {1, 1, 50, 64});
  const Output y = board.run({.call = Call::rotary, .inputs = {x, turn, turn}});
  EXPECT_EQ(y.spec.dims, (Dims{1, 2, 64, 64}));
}

}  // namespace
}  // namespace tendon::tt
