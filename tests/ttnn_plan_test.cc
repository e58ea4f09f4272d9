// labels: unit
// Blocks and masks of the ttnn backend: pure functions, checked over the shapes of the published
// models on every grid, and against brute force.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backends/ttnn/masks.h"
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

std::vector<Product> products() {
  std::vector<Product> all;
  for (const int64_t m : {1, 32, 64, 256, 768, 832, 992})
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{608, 1152},
                               {1152, 3 * 1536},
                               {1536, 1152},
                               {1152, 4320},
                               {4320, 1152},
                               {1152, 2048},
                               {2048, 2560},
                               {2048, 16384},
                               {16384, 2048},
                               {1024, 2560},
                               {2048, 1024},
                               {1024, 4096},
                               {4096, 1024},
                               {32, 1024},
                               {1024, 32},
                               {32, 32}})
      for (const Format w : {Format::bf16, Format::bfp8})
        for (const bool f32 : {true, false}) all.push_back({m, k, n, Format::bf16, w, w, f32});
  return all;
}

int64_t blocks_of(int64_t n, int64_t per_core) { return (n + per_core - 1) / per_core; }

TEST(Plan, blocks_divide_the_product_cover_it_and_fit_the_cores) {
  int64_t planned = 0, all = 0;
  for (const Caps& caps : grids())
    for (const Product& p : products()) {
      const Blocks b = plan_product(p, caps);
      const std::string what =
          fmt::format("{} x {} x {} on {}x{}", p.m, p.k, p.n, caps.grid_x, caps.grid_y);
      ++all;
      if (b.kind == Blocks::Kind::library) continue;
      ++planned;
      EXPECT_EQ(tiles(p.k) % b.k_block, 0) << what;
      EXPECT_EQ(b.core_m % b.subblock_m, 0) << what;
      EXPECT_EQ(b.core_n % b.subblock_n, 0) << what;
      EXPECT_LE(b.subblock_m * b.subblock_n, p.f32_accumulate ? 4 : 8) << what;
      EXPECT_TRUE(b.subblock_n == b.core_n || b.subblock_m == 1) << what;
      EXPECT_LE(l1_bytes_of(b, p), caps.l1_bytes) << what;
      const int64_t rows = blocks_of(tiles(p.m), b.core_m),
                    columns = blocks_of(tiles(p.n), b.core_n);
      EXPECT_GE(rows * columns, 1) << what;
      if (b.kind == Blocks::Kind::multicast_1d) {
        EXPECT_EQ(rows, 1) << what;
        EXPECT_LE(columns, caps.grid_x * caps.grid_y) << what;
      } else {
        EXPECT_LE(rows, caps.grid_y) << what;
        EXPECT_LE(columns, caps.grid_x) << what;
      }
      EXPECT_EQ(b.grid_x, caps.grid_x) << what;
      EXPECT_EQ(b, plan_product(p, caps)) << what;
    }
  EXPECT_GT(planned, all / 2);  // a planner that always leaves it to the library plans nothing
}

TEST(Plan, attention_chunks_are_whole_tiles_that_divide_the_lengths) {
  for (const Caps& caps : grids())
    for (const int64_t q : {32, 64, 256, 832})
      for (const int64_t k : {32, 96, 256, 832, 896})
        for (const int64_t d : {32, 96, 256}) {
          const Chunks c = plan_attention(q, k, d, caps);
          EXPECT_EQ(c.q % kTile, 0);
          EXPECT_EQ(c.k % kTile, 0);
          EXPECT_EQ(q % c.q, 0);
          EXPECT_EQ(k % c.k, 0);
        }
}

TEST(Masks, agree_with_brute_force) {
  const std::vector<int32_t> visible = {1, 4, 4, 2};
  for (const int64_t segments : {1, 2})
    for (const int64_t keys : {4, 8}) {
      const int64_t rows = 4 * segments;
      if (keys / segments < 4) continue;
      const Sight s = sees_first(visible, rows, keys, segments);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < keys; ++k) {
          const int64_t per = keys / segments;
          const bool expected = r / 4 == k / per && k % per < visible[static_cast<size_t>(r % 4)];
          EXPECT_EQ(s.at(r, k), expected) << r << " " << k;
        }
    }
}

TEST(Masks, padding_between_the_pieces_of_a_cache_is_hidden) {
  const std::vector<int32_t> all = {7};
  const KeyPiece pieces[] = {{5, 8}, {2, 4}};  // keys 0..4, three of padding, 5 and 6, two more
  const std::vector<float> mask = additive(sees_first(all, 2, 7), pieces, 3, -9.f);
  const std::vector<float> row = {0, 0, 0, 0, 0, -9, -9, -9, 0, 0, -9, -9};
  ASSERT_EQ(mask.size(), 3 * row.size());
  for (size_t i = 0; i < mask.size(); ++i) EXPECT_EQ(mask[i], row[i % row.size()]) << i;
}

}  // namespace
}  // namespace tendon::tt
