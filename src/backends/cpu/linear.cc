#include "backends/cpu/linear.h"

#include <algorithm>
#include <array>

namespace tendon::cpu {
namespace {

// 1024 words of a panel are 128 KiB: a few panels and the tile that meets them stay in a level-2
// cache, and float sums run over short chains.
constexpr int64_t kBlockWords = 1024;
constexpr int64_t kRowsMax = 32;

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

}  // namespace

void Products::pack(const float* x, const PackedWeight& w, const Tiling& tiling) {
  const int64_t per_row = w.words * isa_.tile_words[static_cast<int>(w.form)];
  uint32_t* tiles = tiles_.get((tiling.first(tiling.count - 1) + isa_.tile_rows) * per_row);
  float* scales = row_scales_.get(tiling.first(tiling.count - 1) + isa_.tile_rows);
  pool_.run(tiling.count, [&](int64_t t, int) {
    std::array<const float*, kRowsMax> rows;
    for (int64_t r = 0; r < tiling.rows(t); ++r)
      rows[static_cast<size_t>(r)] = x + (tiling.first(t) + r) * w.inputs;
    isa_.pack(w.form, rows.data(), tiling.rows(t), w.inputs, tiles + tiling.first(t) * per_row,
              scales + tiling.first(t));
  });
}

// Panels [first, last) for all rows. A block of words of these panels meets every tile before the
// next block begins; the sums wait in `sums`.
void Products::multiply(const PackedWeight& w, const Tiling& tiling, int64_t first, int64_t last,
                        int thread, const Finish& finish) {
  const int form = static_cast<int>(w.form);
  const int64_t step = isa_.tile_words[form], per_row = w.words * step;
  const uint32_t* tiles = tiles_.get(0);
  const bool single = w.words <= kBlockWords;
  const int64_t sums_per_tile = (last - first) * isa_.tile_rows * kPanel;
  float* sums = sums_[static_cast<size_t>(thread)].get(0);
  for (int64_t from = 0; from < w.words; from += kBlockWords) {
    const int64_t words = std::min(kBlockWords, w.words - from);
    const bool done = from + words == w.words;
    for (int64_t t = 0; t < tiling.count; ++t) {
      const int64_t rows = tiling.rows(t);
      const uint32_t* tile = tiles + tiling.first(t) * per_row + from * step * rows;
      for (int64_t p = first; p < last; ++p) {
        float* c = sums + (single ? 0 : t * sums_per_tile) + (p - first) * isa_.tile_rows * kPanel;
        isa_.tiles[form][rows](tile, w.panel(p) + from * kPanel / 2, w.words * kPanel / 2, words, c,
                               from > 0);
        if (!done) continue;
        Finish here = finish;
        here.row = tiling.first(t);
        here.y = finish.y + here.row * finish.columns;
        if (finish.row_scale) here.row_scale = finish.row_scale + here.row;
        isa_.finish(c, rows, p * kPanel, here);
      }
    }
  }
}

void Products::product(const float* x, int64_t rows, const PackedWeight& w, Finish finish) {
  const Tiling tiling(rows, isa_.tile_rows);
  pack(x, w, tiling);
  if (w.form == Form::int8) {
    finish.row_scale = row_scales_.get(0);
    finish.column_scale = w.column_scale.data();
    finish.offset = isa_.biased_int8 ? w.column_sum.data() : nullptr;
  }
  const int64_t most = w.words <= kBlockWords ? 4 : 2;
  const int64_t group = group_size(w.panels, pool_.threads(), most);
  // For every thread now: which of them gets a task first is chance.
  const int64_t sums = group * isa_.tile_rows * kPanel;
  for (Scratch<float>& s : sums_) s.get(w.words <= kBlockWords ? sums : tiling.count * sums);
  pool_.run((w.panels + group - 1) / group, [&](int64_t task, int thread) {
    multiply(w, tiling, task * group, std::min((task + 1) * group, w.panels), thread, finish);
  });
}

}  // namespace tendon::cpu
