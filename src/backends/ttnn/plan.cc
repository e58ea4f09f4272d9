#include "backends/ttnn/plan.h"

#include <algorithm>

namespace tendon::tt {
namespace {

// Kept free in every core: the library's own buffers, semaphores, kernel arguments.
constexpr int64_t kReserve = 180 << 10;
constexpr int64_t kBlockMax = 8;                      // tiles of K per step
constexpr int64_t kF32TileBytes = 4 * kTile * kTile;  // of partial sums

// Two blocks of each operand (one when k is not cut), a row of bias, the output, and the partial
// sums where they have another format.
int64_t linear_bytes(const Request& r, InputSpecs in) {
  const Blocks& b = r.blocks;
  const int64_t operands = b.core_m * b.k_block * tile_bytes(in[0]->format) +
                           b.k_block * b.core_n * tile_bytes(in[1]->format);
  return (b.k_block < tiles(in[0]->dims[3]) ? 2 : 1) * operands +
         (in[2] ? b.core_n * tile_bytes(in[2]->format) : 0) +
         b.core_m * b.core_n *
             (tile_bytes(r.format) + (r.compute.f32_accumulate ? kF32TileBytes : 0));
}

// q (two when it has several chunks), two of k, v and mask, the scores, two of the running output,
// statistics per row of q, and the output: four rows of tiles at a time, but all of it under f32
// accumulation.
int64_t attention_bytes(const Request& r, InputSpecs in, int64_t cores) {
  const auto [batches, heads, m, columns] = in[0]->dims;
  const bool wide = r.compute.f32_accumulate;
  const int64_t q = tiles(r.chunks.q), k = tiles(r.chunks.k), d = tiles(columns);
  const int64_t each = tile_bytes(in[0]->format), half = tile_bytes(Format::bf16);
  const int64_t tasks = batches * heads * divide_up(m, r.chunks.q);
  const int64_t operands = (tasks > cores ? 2 : 1) * q * d + 4 * k * d;
  const int64_t scores = q * k * (wide ? kF32TileBytes : half);
  const int64_t masks = in[3] ? 2 * q * k * half : 0;
  const int64_t statistics = wide ? 7 * q + 2 : 5 * q + 3;
  return (operands + (wide ? q * d : 4 * d)) * each + scores + masks +
         (2 * q * d + statistics) * half;
}

// The library wants whole rows of a block or a single row of tiles per subblock; half of the
// registers hold f32 sums.
void set_subblock(Blocks& b, bool f32_accumulate) {
  const int64_t most = f32_accumulate ? 4 : 8;
  const auto largest_divisor = [](int64_t n, int64_t at_most) {
    while (n % at_most != 0) --at_most;
    return at_most;
  };
  b.subblock_n = largest_divisor(b.core_n, std::min(most, b.core_n));
  if (b.subblock_n == b.core_n)
    b.subblock_m = largest_divisor(b.core_m, std::min(most / b.subblock_n, b.core_m));
}

bool fit(Request& linear, InputSpecs in, const Caps& caps) {
  const int64_t k = tiles(in[0]->dims[3]), cores = caps.grid_x * caps.grid_y;
  for (int64_t b = std::min(kBlockMax, k); b >= 1; --b) {
    linear.blocks.k_block = b;
    if (k % b == 0 && l1_bytes(linear, in, cores) <= caps.l1_bytes - kReserve) return true;
  }
  return false;
}

}  // namespace

int64_t l1_bytes(const Request& request, InputSpecs inputs, int64_t cores) {
  return request.call == Call::linear ? linear_bytes(request, inputs)
                                      : attention_bytes(request, inputs, cores);
}

int64_t bytes_per_core(const Spec& spec, int64_t cores) {
  const bool tiled = spec.layout == Layout::tile;
  const Dims& d = spec.dims;
  const int64_t page = tiled ? tile_bytes(spec.format) : byte_size(spec) / (d[0] * d[1] * d[2]);
  return divide_up(byte_size(spec) / page, cores) * page;
}

Blocks plan_blocks(Request linear, InputSpecs in, const Caps& caps) {
  const Dims& x = in[0]->dims;
  const int64_t m = x[0] * x[1] * tiles(x[2]), n = tiles(in[1]->dims[3]);
  Blocks& b = linear.blocks;
  const auto cut = [&](Blocks::Kind kind, int64_t down, int64_t across) {
    b = {.kind = kind, .grid_x = caps.grid_x, .grid_y = caps.grid_y};
    b.core_m = divide_up(m, down);
    b.core_n = divide_up(n, across);
    if (divide_up(n, b.core_n) == 1 || !fit(linear, in, caps)) return false;
    set_subblock(b, linear.compute.f32_accumulate);
    return true;
  };
  const bool several_down = divide_up(m, divide_up(m, caps.grid_y)) > 1;
  if (m > 4 && several_down && cut(Blocks::Kind::multicast_2d, caps.grid_y, caps.grid_x)) return b;
  if (cut(Blocks::Kind::multicast_1d, 1, caps.grid_x * caps.grid_y)) return b;
  return {};
}

Chunks plan_chunks(Request attention, InputSpecs in, const Caps& caps) {
  const auto chunk = [](int64_t rows) {
    for (const int64_t c : {int64_t{128}, int64_t{64}})
      if (round_up(rows) % c == 0) return c;
    return kTile;
  };
  Chunks& c = attention.chunks = {chunk(in[0]->dims[2]), chunk(in[1]->dims[2])};
  const int64_t cores = caps.grid_x * caps.grid_y, most = caps.l1_bytes - kReserve;
  while (l1_bytes(attention, in, cores) > most && (c.q > kTile || c.k > kTile))
    (c.k > c.q ? c.k : c.q) /= 2;
  return c;
}

}  // namespace tendon::tt
