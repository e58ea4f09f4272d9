#include "backends/cpu/attention.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace tendon::cpu {
namespace {

constexpr int64_t kKeyBlock = 288;  // keys per block at most: nine panels
static_assert(kKeyBlock <= kTileWords);
constexpr int64_t kRowsMax = 32, kHalf = kPanel / 2;

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
  const int64_t all = std::min(kPanel, h.width - panel * kPanel);
  std::array<float, kHalf> nothing{};
  for (int64_t part = 0; part < kPanel; part += kHalf) {
    const int64_t columns = std::clamp<int64_t>(all - part, 0, kHalf);
    for (int64_t key = 0; key < packed.value_words * step; key += step, to += kHalf) {
      const float* low = key < shape.keys ? v + key * stride + part : nothing.data();
      const float* high = key + 1 < shape.keys ? v + (key + 1) * stride + part : nothing.data();
      isa_.interleave(form_, low, high, columns, to);
      std::fill(to + columns, to + kHalf, 0u);
    }
  }
}

// `count` queries from `first`: query n is row n / share of the segment, head n mod share of those
// that share the key/value head.
void Attention::attend(const float* q, const AttentionShape& shape, const Packed& packed,
                       int64_t head, int64_t first, int64_t count, std::span<const int32_t> visible,
                       Workspace& work, float* out) const {
  const Heads& h = shape.heads;
  const int64_t share = h.query / h.kv, form = static_cast<int>(form_);
  const IsaKernels::Tile multiply = isa_.tiles[form][count];
  const Blocks blocks(packed.key_words, isa_.tile_words[form]);
  const float scale = 1.f / std::sqrt(static_cast<float>(h.width));
  std::array<int64_t, kRowsMax> offset;
  std::array<int32_t, kRowsMax> seen, left;
  std::array<float, kRowsMax> maximum, sum, old;
  int32_t farthest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = (first + i) / share, query = head % h.kv * share + (first + i) % share;
    offset[at] = ((head / h.kv * shape.rows + row) * h.query + query) * h.width;
    seen[at] = visible[visible.size() == 1 ? 0 : static_cast<size_t>(row)];
    farthest = std::max(farthest, seen[at]);
    maximum[at] = -INFINITY;
    sum[at] = 0.f;
  }
  uint32_t* query = work.query.get(0);
  const int64_t inputs = blocks.words * inputs_per_word(form_);
  for (int64_t b = 0; b < blocks.count; ++b)
    for (int64_t i = 0; i < count; ++i)
      isa_.pack(form_, q + offset[static_cast<size_t>(i)] + b * inputs,
                std::min(inputs, h.width - b * inputs), 0.f,
                query + (b * count + i) * kTileStride);
  float* sums = work.sums.get(0);
  const int64_t keys = ceil_to(farthest, kPanel);
  const int64_t steps = (keys + kKeyBlock - 1) / kKeyBlock;
  const int64_t block = ceil_to((keys + steps - 1) / std::max<int64_t>(steps, 1), kPanel);
  const uint32_t* k = keys_.peek() + head * packed.keys_size();
  const uint32_t* v = values_.peek() + head * packed.values_size();
  for (int64_t from = 0; from < keys; from += block) {
    const int64_t here = std::min(block, keys - from);
    float* scores = work.scores.get(0);
    for (int64_t p = 0; p < here / kPanel; ++p) {
      const uint32_t* panel = k + (from / kPanel + p) * kPanel * packed.key_words;
      for (int64_t b = 0; b < blocks.count; ++b)
        multiply(query + b * count * kTileStride, panel + b * blocks.words * kPanel / 2,
                 packed.key_words * kPanel / 2,
                 std::min(blocks.words, packed.key_words - b * blocks.words),
                 scores + p * count * kPanel, b > 0, panel);
    }
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      left[i] = seen[i] - static_cast<int32_t>(from);
    float* weights = work.weights.get(0);
    isa_.softmax(scores, count, here, left.data(), scale, maximum.data(), sum.data(), old.data(),
                 weights);
    const int64_t words = words_of(form_, here);
    uint32_t* tile = work.weights_tile.get(0);
    for (int64_t i = 0; i < count; ++i)
      isa_.pack(form_, weights + i * here, here, 0.f, tile + i * kTileStride);
    for (int64_t p = 0; p < packed.value_panels; ++p) {
      float* c = sums + p * count * kPanel;
      if (from > 0)
        for (int64_t i = 0; i < count; ++i)
          isa_.scale_row(c + i * kPanel, kPanel, old[static_cast<size_t>(i)]);
      multiply(tile,
               v + p * kPanel * packed.value_words + from / inputs_per_word(form_) * kPanel / 2,
               packed.value_words * kPanel / 2, words, c, from > 0, tile);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const float inverse = 1.f / sum[static_cast<size_t>(i)];
    for (int64_t p = 0; p < packed.value_panels; ++p) {
      float* c = sums + (p * count + i) * kPanel;
      isa_.scale_row(c, kPanel, inverse);
      std::copy_n(c, std::min(kPanel, h.width - p * kPanel),
                  out + offset[static_cast<size_t>(i)] + p * kPanel);
    }
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
  pool_.run(heads * panels, [&](int64_t task, int thread) {
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
  const Tiling tiling(queries, isa_.tile_rows);
  // For every thread now: which of them gets a task first is chance.
  const int64_t rows = isa_.tile_rows;
  const Blocks blocks(packed.key_words, isa_.tile_words[static_cast<int>(form_)]);
  for (Workspace& work : threads_) {
    work.query.get(blocks.count * rows * kTileStride);
    work.sums.get(packed.value_panels * rows * kPanel);
    work.scores.get(kKeyBlock * rows);
    work.weights.get(kKeyBlock * rows);
    work.weights_tile.get(rows * kTileStride);
  }
  pool_.run(heads * tiling.count, [&](int64_t task, int thread) {
    const int64_t tile = task % tiling.count;
    attend(q, shape, packed, task / tiling.count, tiling.first(tile), tiling.rows(tile), visible,
           threads_[static_cast<size_t>(thread)], out);
  });
}

}  // namespace tendon::cpu
