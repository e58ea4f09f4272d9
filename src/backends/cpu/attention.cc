#include "backends/cpu/attention.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace tendon::cpu {
namespace {

constexpr int64_t kKeyBlock = 288;  // keys per block at most: nine panels
static_assert(kKeyBlock <= kTileWords);
constexpr int64_t kRowsMax = 32;

int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

Attention::Packed Attention::packed_size(const AttentionShape& shape) const {
  const int64_t keys = ceil_to(shape.keys, kPanel);
  return {words_of(form_, shape.heads.width), words_of(form_, keys), keys / kPanel,
          (shape.heads.width + kPanel - 1) / kPanel};
}

// Panel of 32 keys; `head` counts key/value heads over all segments. `rows` is room for 16 keys.
void Attention::pack_keys(const float* k, const AttentionShape& shape, const Packed& packed,
                          int64_t head, int64_t panel, uint32_t* rows, uint32_t* to) const {
  const Heads& h = shape.heads;
  const int64_t stride = h.kv * h.width;
  k += head / h.kv * shape.keys * stride + head % h.kv * h.width;
  for (int64_t first = panel * kPanel; first < (panel + 1) * kPanel; first += kHalf) {
    const int64_t count = std::clamp<int64_t>(shape.keys - first, 0, kHalf);
    for (int64_t i = 0; i < count; ++i)
      isa_.pack_words(form_, k + (first + i) * stride, h.width, rows + i * packed.key_words);
    std::fill_n(rows + count * packed.key_words, (kHalf - count) * packed.key_words, 0u);
    for (int64_t w = 0; w < packed.key_words; ++w)
      for (int64_t i = 0; i < kHalf; ++i) *to++ = rows[i * packed.key_words + w];
  }
}

// Panel of 32 columns of V; words run over the keys.
void Attention::pack_values(const float* v, const AttentionShape& shape, const Packed& packed,
                            int64_t head, int64_t panel, uint32_t* to) const {
  const Heads& h = shape.heads;
  const int64_t stride = h.kv * h.width, step = inputs_per_word(form_);
  v += head / h.kv * shape.keys * stride + head % h.kv * h.width + panel * kPanel;
  std::array<float, kHalf> nothing{};
  for (int64_t part = 0; part < kPanel; part += kHalf) {
    const int64_t own = h.width - panel * kPanel - part, later = (h.kv - 1 - head % h.kv) * h.width;
    // Columns of later heads stand in for those that this one lacks: nobody reads their results.
    const int64_t columns = own > 0 ? std::min(kHalf, own + later) : 0;
    for (int64_t key = 0; key < packed.value_words * step; key += step, to += kHalf) {
      const float* low = key < shape.keys ? v + key * stride + part : nothing.data();
      const float* high = key + 1 < shape.keys ? v + (key + 1) * stride + part : nothing.data();
      isa_.interleave(form_, low, high, columns, to);
      std::fill(to + columns, to + kHalf, 0u);
    }
  }
}

// Scores of `count` packed queries with keys [from, from + keys).
void Attention::score(const uint32_t* k, const Packed& packed, int64_t count, int64_t from,
                      int64_t keys, Workspace& work) const {
  const int form = static_cast<int>(form_);
  const Blocks blocks(packed.key_words, isa_.tile_words[form]);
  const uint32_t* query = work.query.peek();
  float* scores = work.scores.get(0);
  for (int64_t p = 0; p < keys / kPanel; ++p, scores += count * kPanel) {
    const uint32_t* panel = k + (from / kPanel + p) * kPanel * packed.key_words;
    for (int64_t b = 0; b < blocks.count; ++b)
      isa_.tiles[form][count](query + b * count * kTileStride, panel + b * blocks.words * kHalf,
                              packed.key_words * kHalf,
                              std::min(blocks.words, packed.key_words - b * blocks.words), scores,
                              b > 0, panel);
  }
}

// Adds the values of these keys, weighted, to sums that shrink by `old` first.
void Attention::add_values(const uint32_t* v, const Packed& packed, int64_t count, int64_t from,
                           int64_t keys, const float* old, Workspace& work) const {
  const float* weights = work.weights.peek();
  uint32_t* tile = work.tile.get(0);
  float* sums = work.sums.get(0);
  for (int64_t i = 0; i < count; ++i)
    isa_.pack(form_, weights + i * keys, keys, 0.f, tile + i * kTileStride);
  v += from / inputs_per_word(form_) * kHalf;
  for (int64_t p = 0; p < packed.value_panels; ++p, v += kPanel * packed.value_words) {
    float* c = sums + p * count * kPanel;
    for (int64_t i = 0; from > 0 && i < count; ++i) isa_.scale_row(c + i * kPanel, kPanel, old[i]);
    isa_.tiles[static_cast<int>(form_)][count](tile, v, packed.value_words * kHalf,
                                               words_of(form_, keys), c, from > 0, tile);
  }
}

// `count` queries from `first`: query n is row n / share of the segment, head n mod share of those
// that share the key/value head.
void Attention::attend(const float* q, const AttentionShape& shape, const Packed& packed,
                       int64_t head, int64_t first, int64_t count, std::span<const int32_t> visible,
                       Workspace& work, float* out) const {
  const Heads& h = shape.heads;
  const int64_t share = h.query / h.kv;
  const float scale = 1.f / std::sqrt(static_cast<float>(h.width));
  const Blocks blocks(packed.key_words, isa_.tile_words[static_cast<int>(form_)]);
  const int64_t inputs = blocks.words * inputs_per_word(form_);
  std::array<int64_t, kRowsMax> offset{};
  std::array<int32_t, kRowsMax> seen{}, left{};
  std::array<float, kRowsMax> maximum{}, sum{}, old{};
  maximum.fill(-INFINITY);
  sum.fill(0.f);
  int32_t farthest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = (first + i) / share, query = head % h.kv * share + (first + i) % share;
    offset[at] = ((head / h.kv * shape.rows + row) * h.query + query) * h.width;
    seen[at] = visible[visible.size() == 1 ? 0 : static_cast<size_t>(row)];
    farthest = std::max(farthest, seen[at]);
    for (int64_t b = 0; b < blocks.count; ++b)
      isa_.pack(form_, q + offset[at] + b * inputs, std::min(inputs, h.width - b * inputs), 0.f,
                work.query.get(0) + (b * count + i) * kTileStride);
  }
  const int64_t keys = ceil_to(farthest, kPanel), steps = (keys + kKeyBlock - 1) / kKeyBlock;
  const int64_t step = ceil_to((keys + steps - 1) / steps, kPanel);
  for (int64_t from = 0; from < keys; from += step) {
    const int64_t here = std::min(step, keys - from);
    score(keys_.peek() + head * packed.keys_size(), packed, count, from, here, work);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      left[i] = seen[i] - static_cast<int32_t>(from);
    isa_.softmax(work.scores.get(0), count, here, left.data(), scale, maximum.data(), sum.data(),
                 old.data(), work.weights.get(0));
    add_values(values_.peek() + head * packed.values_size(), packed, count, from, here, old.data(),
               work);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t p = 0; p < packed.value_panels; ++p) {
      float* c = work.sums.get(0) + (p * count + i) * kPanel;
      isa_.scale_row(c, kPanel, 1.f / sum[static_cast<size_t>(i)]);
      std::copy_n(c, std::min(kPanel, h.width - p * kPanel),
                  out + offset[static_cast<size_t>(i)] + p * kPanel);
    }
}

void Attention::run(const float* q, const float* k, const float* v, const AttentionShape& shape,
                    std::span<const int32_t> visible, float* out) {
  const Packed packed = packed_size(shape);
  const int64_t heads = shape.segments * shape.heads.kv;
  uint32_t* keys = keys_.get(heads * packed.keys_size());
  uint32_t* values = values_.get(heads * packed.values_size());
  const int64_t panels = packed.key_panels + packed.value_panels;
  for (Workspace& work : threads_) work.keys.get(kHalf * packed.key_words);
  const int64_t values_in = heads * shape.keys * shape.heads.width;
  pool_.run(
      heads * panels, 2 * values_in / ThreadPool::kValuesPerNs, [&](int64_t task, int thread) {
        const int64_t head = task / panels, p = task % panels;
        if (p < packed.key_panels)
          pack_keys(k, shape, packed, head, p, threads_[static_cast<size_t>(thread)].keys.get(0),
                    keys + head * packed.keys_size() + p * kPanel * packed.key_words);
        else
          pack_values(v, shape, packed, head, p - packed.key_panels,
                      values + head * packed.values_size() +
                          (p - packed.key_panels) * kPanel * packed.value_words);
      });
  const int64_t queries = shape.rows * shape.heads.query / shape.heads.kv;
  const int64_t rows = isa_.tile_rows[static_cast<int>(form_)];
  const Tiling tiling(queries, rows);
  // For every thread now: which of them gets a task first is chance.
  const Blocks blocks(packed.key_words, isa_.tile_words[static_cast<int>(form_)]);
  for (Workspace& work : threads_) {
    work.query.get(blocks.count * rows * kTileStride);
    work.sums.get(packed.value_panels * rows * kPanel);
    work.scores.get(kKeyBlock * rows);
    work.weights.get(kKeyBlock * rows);
    work.tile.get(rows * kTileStride);
  }
  const int64_t scores = heads * queries * shape.keys;
  const int64_t ns =
      scores / ThreadPool::kValuesPerNs + 2 * scores * shape.heads.width / macs_per_ns_;
  pool_.run(heads * tiling.count, ns, [&](int64_t task, int thread) {
    const int64_t tile = task % tiling.count;
    attend(q, shape, packed, task / tiling.count, tiling.first(tile), tiling.rows(tile), visible,
           threads_[static_cast<size_t>(thread)], out);
  });
}

}  // namespace tendon::cpu
