#include "backends/cpu/linear.h"

#include <unistd.h>

#include <algorithm>

namespace tendon::cpu {
namespace {

// Rows of x in one pass: small enough for a level-3 cache, since every group of panels reads all of
// it. Sums wait between passes; they are read and written once per pass.
constexpr int64_t kPassBytes = int64_t{7} << 20;
// A group's panels of these blocks (64 KiB each) take half of the level-2 cache while all rows
// pass.
int64_t largest_group() {
  const int64_t cache = ::sysconf(_SC_LEVEL2_CACHE_SIZE);
  constexpr int64_t kPanelBytes = kBlocksTogether * kBlockWords * 4;
  return std::clamp<int64_t>((cache > 0 ? cache : 1 << 20) / 2 / kPanelBytes, 1, 16);
}

// Panels per task: the fewest panels on the busiest thread, then the largest group.
int64_t group_size(int64_t panels, int threads, int64_t most) {
  int64_t best = 1, best_time = (panels + threads - 1) / threads;
  for (int64_t g = 2; g <= most; ++g) {
    const int64_t tasks = (panels + g - 1) / g;
    const int64_t time = (tasks + threads - 1) / threads * g;
    if (time <= best_time + best_time / 64) best = g;
  }
  return best;
}

// Brings the parts of y and of the residual that the next product ends in, while it runs. Inlined:
// gcc leaves out calls of a function that does nothing but prefetch.
[[gnu::always_inline]] inline void fetch(const TileEpilogue& finish, int64_t row, int64_t rows,
                                         int64_t panel) {
  const int64_t width = finish.activation == TileActivation::gated_gelu ? kHalf : kPanel;
  for (int64_t r = row; r < row + rows; ++r) {
    const float* y = finish.y + r * finish.stride + panel * width;
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(y + i, 0, 2);
    if (!finish.residual) continue;
    const float* from = finish.residual + r % finish.residual_rows * finish.columns + panel * width;
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(from + i, 0, 2);
  }
}

// The same for one panel, whose columns may go to a part.
TileEpilogue routed(TileEpilogue finish, std::span<const Products::Part> parts, int64_t panel) {
  finish.stride = finish.columns;
  for (const Products::Part& part : parts) {
    if (part.first > panel * kPanel) break;
    finish.y = part.y - part.first;
    finish.stride = part.columns;
  }
  return finish;
}

}  // namespace

Products::Products(const SimdKernels& isa, ThreadPool& pool, int64_t macs_per_ns)
    : isa_(isa),
      pool_(pool),
      macs_per_ns_(macs_per_ns),
      group_most_(largest_group()),
      threads_(static_cast<size_t>(pool.threads())) {}

void Products::pack(const float* x, const Product& product, const Pass& pass) {
  const PackedWeight& w = product.w;
  const int64_t rows = product.rows;
  constexpr int64_t kRows = 8;
  const int64_t inputs = pass.blocks.words * inputs_per_word(w.form);
  uint32_t* tiles = tiles_.get(0);
  float* scales = row_scales_.get(0);
  float* inverses = scales + rows;
  const int64_t ns = rows * w.inputs / ThreadPool::kValuesPerNs;
  pool_.run((rows + kRows - 1) / kRows, ns, [&](int64_t task, int) {
    for (int64_t r = task * kRows; r < std::min((task + 1) * kRows, rows); ++r) {
      const float* row = x + r * w.inputs;
      if (w.form == Form::int8 && pass.first == 0) {
        const float largest = isa_.largest(row, w.inputs);
        scales[r] = largest / 127.f;
        inverses[r] = largest > 0 ? 127.f / largest : 0.f;
      }
      for (int64_t b = pass.first; b < pass.last; ++b)
        isa_.pack(w.form, row + b * inputs, std::min(inputs, w.inputs - b * inputs), inverses[r],
                  tiles + ((b - pass.first) * rows + r) * kTileStride);
    }
  });
}

// Block `block` of the group's panels.
void Products::widen(const PackedWeight& w, const Blocks& blocks, const Group& group,
                     int64_t block) const {
  const int64_t from = block * blocks.words, words = std::min(blocks.words, w.words - from);
  for (int64_t p = group.first; p < group.last; ++p) {
    const int64_t at = (p - group.first) * kBlocksTogether + block % kBlocksTogether;
    uint32_t* to = group.widened + at * kBlockWords;
    for (int64_t side = 0; side < 2; ++side)
      isa_.widen(w.form, w.panel(p) + (side * w.words + from) * kHalf, words,
                 to + side * 2 * words * kHalf);
  }
}

// All rows times the panels of a group. A few blocks of words of these panels meet every tile
// before the next ones begin; the sums of unfinished tiles wait in the group's.
void Products::multiply(const Product& product, const Pass& pass, const Group& group) {
  const auto& [w, rows, finish, parts] = product;
  const auto [panel, last_panel, sums, widened] = group;
  const int form = static_cast<int>(w.form);
  const int64_t tile_rows = isa_.tile_rows[form];
  const bool wide = isa_.tile_words[form] == 2;
  const Tiling tiling(rows, tile_rows);
  const int64_t half = w.words * kHalf;
  const int64_t per_tile = pass.is_straight() ? 0 : (last_panel - panel) * tile_rows * kPanel;
  for (int64_t begin = pass.first; begin < pass.last; begin += kBlocksTogether) {
    const int64_t end = std::min(begin + kBlocksTogether, pass.last);
    for (int64_t b = begin; wide && b < end; ++b) widen(w, pass.blocks, group, b);
    for (int64_t t = 0; t < tiling.count; ++t)
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = tiling.first(t), count = tiling.rows(t);
        const int64_t from = b * pass.blocks.words,
                      words = std::min(pass.blocks.words, w.words - from);
        const bool more = end < pass.last, done = b + 1 == pass.blocks.count;
        const uint32_t* tile = tiles_.peek() + ((b - pass.first) * rows + first) * kTileStride;
        // What this thread needs next: the next tile or, in the last two, the halves of the next
        // blocks of these panels or, most likely, of the panels after those of the other threads.
        const int64_t side = t + 2 - tiling.count;
        const int64_t next_from = (more ? b + kBlocksTogether : b) * pass.blocks.words;
        const int64_t next_panel = more ? panel : panel + pool_.threads() * (last_panel - panel);
        for (int64_t p = panel; p < last_panel; ++p) {
          float* c = sums + t * per_tile + (p - panel) * tile_rows * kPanel;
          TileEpilogue here;
          if (done) here = routed(finish, parts, p);
          if (done) fetch(here, first, count, p);
          const int64_t there = next_panel + p - panel;
          const uint32_t* next = w.panel(p);
          if (side < 0) next = tile + count * kTileStride + (last_panel - 1 - p) * words * kHalf;
          if (side >= 0 && there < w.panels && next_from < w.words)
            next = w.panel(there) + side * half + next_from * kHalf;
          TileProduct step{tile, w.panel(p) + from * kHalf, half, words, c, b > 0, next};
          if (wide) {
            step.panel =
                widened + ((p - panel) * kBlocksTogether + b % kBlocksTogether) * kBlockWords;
            step.words = 2 * words;
            step.half = step.words * kHalf;
          }
          isa_.tiles[form][count](step);
          if (!done) continue;
          here.row = first;
          here.y += first * here.stride;
          if (finish.row_scale) here.row_scale = finish.row_scale + first;
          isa_.finish(c, count, p * kPanel, here);
        }
      }
  }
}

void Products::product(const float* x, int64_t rows, const PackedWeight& w, TileEpilogue finish,
                       std::span<const Part> parts) {
  const int form = static_cast<int>(w.form);
  const int64_t tile_rows = isa_.tile_rows[form];
  const Blocks blocks(w.words, isa_.tile_words[form]);
  const int64_t block_bytes = rows * kTileStride * static_cast<int64_t>(sizeof(uint32_t));
  const int64_t passes = std::min(blocks.count, blocks.count * block_bytes / kPassBytes + 1);
  const int64_t per_pass = (blocks.count + passes - 1) / passes;
  tiles_.get(per_pass * rows * kTileStride);
  row_scales_.get(2 * rows);
  if (w.form == Form::int8) {
    finish.row_scale = row_scales_.get(0);
    finish.column_scale = w.column_scale.data();
    finish.offset = isa_.biased_int8 ? w.column_sum.data() : nullptr;
  }
  const int64_t group = group_size(w.panels, pool_.threads(), group_most_);
  const bool straight = Pass{blocks, 0, per_pass}.is_straight();
  const int64_t tiles = straight ? 1 : Tiling(rows, tile_rows).count;
  const int64_t sums = tiles * tile_rows * kPanel;  // of one panel
  float* waiting = passes > 1 ? waiting_.get(w.panels * sums) : nullptr;
  // For every thread now: which of them gets a task first is chance.
  for (Workspace& work : threads_) {
    work.sums.get(group * sums);
    if (isa_.tile_words[form] == 2) work.widened.get(group * kBlocksTogether * kBlockWords);
  }
  const Product product{w, rows, finish, parts};
  for (int64_t first = 0; first < blocks.count; first += per_pass) {
    const Pass pass{blocks, first, std::min(first + per_pass, blocks.count)};
    pack(x, product, pass);
    const int64_t ns = rows * w.panels * kPanel * w.inputs / macs_per_ns_;
    pool_.run((w.panels + group - 1) / group, ns, [&](int64_t task, int thread) {
      const int64_t panel = task * group;
      Workspace& work = threads_[static_cast<size_t>(thread)];
      multiply(product, pass,
               {panel, std::min(panel + group, w.panels),
                waiting ? waiting + panel * sums : work.sums.get(0), work.widened.get(0)});
    });
  }
}

}  // namespace tendon::cpu
