#include "backends/cpu/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "tensor/bf16.h"

namespace tendon::cpu {
namespace {

constexpr int64_t kKeyBlock = 288;  // keys per block at most: nine panels
constexpr int64_t kRowsMax = 32;

uint32_t word(float x) {
  uint32_t w;
  std::memcpy(&w, &x, sizeof(w));
  return w;
}

uint32_t pair(float low, float high) {
  return static_cast<uint32_t>(to_bf16(low)) | static_cast<uint32_t>(to_bf16(high)) << 16;
}

int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

Attention::Packed Attention::packed_size(const AttentionShape& shape) const {
  const int64_t keys = ceil_to(shape.keys, kPanel);
  return {words_of(form_, shape.heads.width), words_of(form_, keys), keys / kPanel,
          (shape.heads.width + kPanel - 1) / kPanel};
}

// Panel of 32 keys; `head` counts key/value heads over all segments.
void Attention::pack_keys(const float* k, const AttentionShape& shape, const Packed& packed,
                          int64_t head, int64_t panel, uint32_t* to) const {
  const Heads& h = shape.heads;
  const int64_t stride = h.kv * h.width, half = kPanel / 2;
  k += head / h.kv * shape.keys * stride + head % h.kv * h.width;
  for (int64_t i = 0; i < kPanel; ++i) {
    const int64_t key = panel * kPanel + i;
    uint32_t* column = to + i / half * half * packed.key_words + i % half;
    if (key >= shape.keys) {
      for (int64_t w = 0; w < packed.key_words; ++w) column[w * half] = 0;
      continue;
    }
    const float* row = k + key * stride;
    if (form_ == Form::f32) {
      for (int64_t w = 0; w < h.width; ++w) column[w * half] = word(row[w]);
    } else {
      for (int64_t w = 0; w < h.width / 2; ++w) column[w * half] = pair(row[2 * w], row[2 * w + 1]);
      if (h.width % 2) column[h.width / 2 * half] = pair(row[h.width - 1], 0.f);
    }
  }
}

// Panel of 32 columns of V; words run over the keys.
void Attention::pack_values(const float* v, const AttentionShape& shape, const Packed& packed,
                            int64_t head, int64_t panel, uint32_t* to) const {
  const Heads& h = shape.heads;
  const int64_t stride = h.kv * h.width, half = kPanel / 2, step = inputs_per_word(form_);
  v += head / h.kv * shape.keys * stride + head % h.kv * h.width + panel * kPanel;
  const int64_t columns = std::min(kPanel, h.width - panel * kPanel);
  for (int64_t w = 0; w < packed.value_words; ++w) {
    const int64_t key = w * step;
    const float* low = key < shape.keys ? v + key * stride : nullptr;
    const float* high = key + 1 < shape.keys ? v + (key + 1) * stride : nullptr;
    for (int64_t i = 0; i < kPanel; ++i) {
      uint32_t& to_word = to[(i / half * packed.value_words + w) * half + i % half];
      const float a = low && i < columns ? low[i] : 0.f;
      to_word = step == 1 ? word(a) : pair(a, high && i < columns ? high[i] : 0.f);
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
  const float scale = 1.f / std::sqrt(static_cast<float>(h.width));
  std::array<const float*, kRowsMax> rows;
  std::array<int64_t, kRowsMax> offset;
  std::array<int32_t, kRowsMax> seen, left;
  std::array<float, kRowsMax> maximum, sum, old;
  int32_t farthest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = (first + i) / share, query = head % h.kv * share + (first + i) % share;
    offset[at] = ((head / h.kv * shape.rows + row) * h.query + query) * h.width;
    rows[at] = q + offset[at];
    seen[at] = visible[visible.size() == 1 ? 0 : static_cast<size_t>(row)];
    farthest = std::max(farthest, seen[at]);
    maximum[at] = -INFINITY;
    sum[at] = 0.f;
  }
  uint32_t* query = work.query.get(0);
  isa_.pack(form_, rows.data(), count, h.width, query, nullptr);
  float* sums = work.sums.get(0);
  const int64_t keys = ceil_to(farthest, kPanel);
  const int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
  const int64_t block = ceil_to((keys + blocks - 1) / blocks, kPanel);
  const uint32_t* k = keys_.peek() + head * packed.keys_size();
  const uint32_t* v = values_.peek() + head * packed.values_size();
  for (int64_t from = 0; from < keys; from += block) {
    const int64_t here = std::min(block, keys - from);
    float* scores = work.scores.get(0);
    for (int64_t p = 0; p < here / kPanel; ++p)
      multiply(query, k + (from / kPanel + p) * kPanel * packed.key_words,
               packed.key_words * kPanel / 2, packed.key_words, scores + p * count * kPanel, false);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      left[i] = seen[i] - static_cast<int32_t>(from);
    float* weights = work.weights.get(0);
    isa_.softmax(scores, count, here, left.data(), scale, maximum.data(), sum.data(), old.data(),
                 weights);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      rows[i] = weights + static_cast<int64_t>(i) * here;
    const int64_t words = words_of(form_, here);
    uint32_t* tile = work.weights_tile.get(0);
    isa_.pack(form_, rows.data(), count, here, tile, nullptr);
    for (int64_t p = 0; p < packed.value_panels; ++p) {
      float* c = sums + p * count * kPanel;
      if (from > 0)
        for (int64_t i = 0; i < count; ++i)
          isa_.scale_row(c + i * kPanel, kPanel, old[static_cast<size_t>(i)]);
      multiply(tile,
               v + p * kPanel * packed.value_words + from / inputs_per_word(form_) * kPanel / 2,
               packed.value_words * kPanel / 2, words, c, from > 0);
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
  pool_.run(heads * panels, [&](int64_t task, int) {
    const int64_t head = task / panels, p = task % panels;
    if (p < packed.key_panels)
      pack_keys(k, shape, packed, head, p,
                keys + head * packed.keys_size() + p * kPanel * packed.key_words);
    else
      pack_values(v, shape, packed, head, p - packed.key_panels,
                  values + head * packed.values_size() +
                      (p - packed.key_panels) * kPanel * packed.value_words);
  });
  const int64_t queries = shape.rows * shape.heads.query / shape.heads.kv;
  const Tiling tiling(queries, isa_.tile_rows);
  // For every thread now: which of them gets a task first is chance.
  const int64_t rows = isa_.tile_rows, step = isa_.tile_words[static_cast<int>(form_)];
  for (Workspace& work : threads_) {
    work.query.get(rows * packed.key_words * step);
    work.sums.get(packed.value_panels * rows * kPanel);
    work.scores.get(kKeyBlock * rows);
    work.weights.get(kKeyBlock * rows);
    work.weights_tile.get(rows * kKeyBlock * step);
  }
  pool_.run(heads * tiling.count, [&](int64_t task, int thread) {
    const int64_t tile = task % tiling.count;
    attend(q, shape, packed, task / tiling.count, tiling.first(tile), tiling.rows(tile), visible,
           threads_[static_cast<size_t>(thread)], out);
  });
}

}  // namespace tendon::cpu
