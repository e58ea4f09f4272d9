#include "backends/ttnn/plan.h"

#include <algorithm>

namespace tendon::tt {
namespace {

// Kept free in every core: the library's own buffers, semaphores, kernel arguments.
constexpr int64_t kReserve = 180 << 10;
constexpr int64_t kBlockMax = 8;  // tiles of K per step

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The library wants whole rows of a block or a single row of tiles per subblock; half of the
// registers hold f32 sums.
void set_subblock(Blocks& b, bool f32_accumulate) {
  const int64_t most = f32_accumulate ? 4 : 8;
  for (int64_t w = std::min(most, b.core_n); w >= 1; --w) {
    if (b.core_n % w != 0) continue;
    b.subblock_n = w;
    b.subblock_m = 1;
    if (w == b.core_n)
      for (int64_t h = std::min(most / w, b.core_m); h > 1; --h)
        if (b.core_m % h == 0) {
          b.subblock_m = h;
          break;
        }
    return;
  }
}

bool fits(Blocks& b, const Product& p, int64_t l1_bytes) {
  const int64_t k = tiles(p.k);
  for (b.k_block = std::min(kBlockMax, k); b.k_block >= 1; --b.k_block)
    if (k % b.k_block == 0 && l1_bytes_of(b, p) <= l1_bytes - kReserve) return true;
  return false;
}

}  // namespace

int64_t l1_bytes_of(const Blocks& b, const Product& p) {
  const int64_t sums = p.f32_accumulate ? kF32TileBytes : 0;
  return 2 * b.core_m * b.k_block * tile_bytes(p.x) + 2 * b.k_block * b.core_n * tile_bytes(p.w) +
         b.core_m * b.core_n * (tile_bytes(p.y) + sums);
}

Blocks plan_product(const Product& p, const Caps& caps) {
  const int64_t m = tiles(p.m), n = tiles(p.n);
  Blocks wide{.kind = Blocks::Kind::multicast_2d, .grid_x = caps.grid_x, .grid_y = caps.grid_y};
  wide.core_m = divide_up(m, caps.grid_y);
  wide.core_n = divide_up(n, caps.grid_x);
  const bool two_ways = divide_up(m, wide.core_m) > 1 && divide_up(n, wide.core_n) > 1;
  if (m > 4 && two_ways && fits(wide, p, caps.l1_bytes)) {
    set_subblock(wide, p.f32_accumulate);
    return wide;
  }
  Blocks flat{.kind = Blocks::Kind::multicast_1d, .grid_x = caps.grid_x, .grid_y = caps.grid_y};
  flat.core_m = m;
  flat.core_n = divide_up(n, caps.grid_x * caps.grid_y);
  if (divide_up(n, flat.core_n) > 1 && fits(flat, p, caps.l1_bytes)) {
    set_subblock(flat, p.f32_accumulate);
    return flat;
  }
  return {};
}

Chunks plan_attention(int64_t queries, int64_t keys, int64_t head_width, const Caps& caps) {
  const auto chunk = [&](int64_t rows) {
    for (const int64_t c : {int64_t{128}, int64_t{64}})
      if (tiles(rows) * kTile % c == 0) return c;
    return kTile;
  };
  Chunks c{chunk(queries), chunk(keys)};
  // Two buffers of q, k, v, the output and its running sum; scores and the mask.
  const auto bytes = [&] {
    return 2 * (2 * (2 * c.q + 2 * c.k) * head_width + 2 * c.q * c.k) + 4 * c.q * head_width;
  };
  while (bytes() > caps.l1_bytes - kReserve && (c.q > kTile || c.k > kTile))
    (c.k > c.q ? c.k : c.q) /= 2;
  return c;
}

}  // namespace tendon::tt
