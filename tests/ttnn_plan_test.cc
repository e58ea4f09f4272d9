// labels: unit
// Blocks and masks of the ttnn backend: pure functions, checked over the shapes of the published
// models on every grid, and against brute force.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backends/ttnn/constants.h"
#include "backends/ttnn/plan.h"

namespace tendon::tt {
namespace {

constexpr int64_t kL1 = 1'499'136;

std::vector<Caps> grids() {
  std::vector<Caps> all;
  for (const auto& [x, y] : {std::pair{8, 7}, {8, 8}, {8, 9}, {11, 10}, {13, 10}, {2, 2}, {1, 1}})
    all.push_back({.grid_x = x, .grid_y = y, .l1_bytes = kL1});
  return all;
}

// Every product of the published models, in whole tiles, of few rows and many.
constexpr int64_t kRows[] = {1, 32, 64, 256, 768, 832, 992};
constexpr int64_t kInputs[] = {608,   1152, 1536, 1152, 4320, 1152, 2048, 2048,
                               16384, 1024, 2048, 1024, 4096, 32,   1024, 32};
constexpr int64_t kOutputs[] = {1152, 4608, 1152, 4320, 1152, 2048, 2560, 16384,
                                2048, 2560, 1024, 4096, 1024, 1024, 32,   32};

// The rules of ttnn_rules_test hold for every plan: the device is asked for specs alone.
TEST(Plan, of_every_product_is_legal_on_every_grid) {
  int64_t planned = 0, all = 0;
  const auto plan = [&](TtApi& device, const Caps& caps, const Spec& x, const Spec& w, bool f32) {
    SCOPED_TRACE(
        fmt::format("{} by {} on {}x{}", to_string(x), to_string(w), caps.grid_x, caps.grid_y));
    const std::optional<Spec> in[] = {x, w, std::nullopt};
    Request r{.call = Call::linear, .format = w.format, .compute = {.f32_accumulate = f32}};
    r.blocks = plan_blocks(r, in, caps);
    ++all;
    planned += r.blocks.kind != Blocks::Kind::library;
    EXPECT_TRUE(r.blocks.subblock_n == r.blocks.core_n || r.blocks.subblock_m == 1);
    EXPECT_LE(l1_bytes(r, in, caps.grid_x * caps.grid_y) + (64 << 10), caps.l1_bytes);
    r.inputs = {device.upload(x, {}).id, device.upload(w, {}).id, 0};
    EXPECT_NO_THROW(device.release(device.run(r)[0].id));
    for (const TensorId id : {r.inputs[0], r.inputs[1]}) device.release(id);
  };
  for (const Caps& caps : grids()) {
    const auto device = open_fake_device(
        {.grid_x = caps.grid_x, .grid_y = caps.grid_y, .dram_bytes = 1LL << 40, .compute = false});
    for (const int64_t m : kRows)
      for (size_t i = 0; i < std::size(kInputs); ++i)
        for (const Format w : {Format::bf16, Format::bfp8})
          for (const bool f32 : {true, false})
            plan(*device, caps, {{1, 1, m, kInputs[i]}}, {{1, 1, kInputs[i], kOutputs[i]}, w}, f32);
  }
  EXPECT_GT(planned, all / 2);  // a planner that always leaves it to the library plans nothing
}

TEST(Plan, attention_chunks_are_whole_tiles_that_divide_the_lengths) {
  for (const Caps& caps : grids())
    for (const int64_t q : {32, 64, 256, 832})
      for (const int64_t k : {32, 96, 256, 832, 896})
        for (const int64_t d : {32, 96, 256}) {
          const Spec keys{{1, 1, k, d}};
          const std::optional<Spec> in[] = {Spec{{1, 8, q, d}}, keys, keys, Spec{{1, 1, q, k}}};
          const Chunks c = plan_chunks({.call = Call::attention}, in, caps);
          EXPECT_EQ(c.q % kTile, 0);
          EXPECT_EQ(c.k % kTile, 0);
          EXPECT_EQ(q % c.q, 0);
          EXPECT_EQ(k % c.k, 0);
        }
}

TEST(Masks, agree_with_brute_force) {
  const std::vector<int32_t> visible = {1, 4, 4, 2};
  for (const int64_t segments : {1, 2}) {
    const int64_t rows = 4 * segments, keys = 8, per = keys / segments;
    const std::vector<float> mask = additive({visible, segments, rows, rows, {{keys, keys}}});
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < keys; ++k) {
        const bool seen = r / 4 == k / per && k % per < visible[static_cast<size_t>(r % 4)];
        EXPECT_EQ(mask[static_cast<size_t>(r * keys + k)], seen ? 0 : -1e9f) << r << " " << k;
      }
  }
}

TEST(Masks, padding_between_the_pieces_of_a_cache_is_hidden) {
  // Keys 0..4, three of padding, 5 and 6, two more; two rows and one of padding.
  const std::vector<float> mask = additive({{7}, 1, 2, 3, {{5, 8}, {2, 4}}});
  const std::vector<float> row = {0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1};
  ASSERT_EQ(mask.size(), 3 * row.size());
  for (size_t i = 0; i < mask.size(); ++i) EXPECT_EQ(mask[i], -1e9f * row[i % row.size()]) << i;
}

}  // namespace
}  // namespace tendon::tt
