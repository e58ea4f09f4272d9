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

Attention::Packed::Packed(const AttentionCall& call, const Attention& attention)
    : key_words(ceil_to(call.heads.width, inputs_per_word(attention.form_)) /
                attention.word_inputs_),
      value_words(ceil_to(call.keys, kPanel) / attention.word_inputs_),
      key_panels(ceil_to(call.keys, kPanel) / kPanel),
      value_panels((call.heads.width + kPanel - 1) / kPanel) {}

// Panel of 32 keys; `head` counts key/value heads over all segments. `rows` is room for 16 keys.
void Attention::pack_keys(const AttentionCall& call, int64_t head, int64_t panel, uint32_t* rows,
                          uint32_t* to) const {
  const Heads& h = call.heads;
  const int64_t stride = h.kv * h.width, words = Packed(call, *this).key_words;
  const float* k = call.k + head / h.kv * call.keys * stride + head % h.kv * h.width;
  for (int64_t first = panel * kPanel; first < (panel + 1) * kPanel; first += kHalf) {
    const int64_t count = std::clamp<int64_t>(call.keys - first, 0, kHalf);
    for (int64_t i = 0; i < count; ++i)
      isa_.pack(form_, k + (first + i) * stride, h.width, 0.f, rows + i * words);
    std::fill_n(rows + count * words, (kHalf - count) * words, 0u);
    for (int64_t w = 0; w < words; ++w)
      for (int64_t i = 0; i < kHalf; ++i) *to++ = rows[i * words + w];
  }
}

// The words of 32 keys in all panels of V, whose words run over the keys; `to`: of key 0.
void Attention::pack_values(const AttentionCall& call, const Packed& packed, int64_t head,
                            int64_t panel, uint32_t* to) const {
  const Heads& h = call.heads;
  const int64_t stride = h.kv * h.width, step = word_inputs_;
  const float* v = call.v + head / h.kv * call.keys * stride + head % h.kv * h.width;
  const int64_t half = packed.value_words * kHalf, halves = 2 * packed.value_panels;
  // Columns of later heads stand in for those that this one lacks: nobody reads their results.
  const int64_t later = (h.kv - 1 - head % h.kv) * h.width;
  const int64_t columns = std::min(ceil_to(h.width, kHalf), h.width + later);
  for (int64_t key = panel * kPanel; key < (panel + 1) * kPanel; key += step) {
    uint32_t* word = to + key / step * kHalf;
    const int64_t filled = key < call.keys ? columns : 0;
    for (int64_t i = filled / kHalf; i < halves; ++i) std::fill_n(word + i * half, kHalf, 0u);
    if (filled == 0) continue;
    const float* low = v + key * stride;
    // What stands beside the last key has no weight.
    const float* high = key + 1 < call.keys ? low + stride : low;
    isa_.interleave(form_, low, high, columns, half, word);
  }
}

// Scores of packed queries with these keys.
void Attention::score(const Packed& packed, const Block& block, Workspace& work) const {
  const auto [head, count, from, keys] = block;
  const uint32_t* k = keys_.peek() + head * packed.keys_size();
  const int form = static_cast<int>(form_);
  const Blocks blocks(packed.key_words, 1);
  const uint32_t* query = work.query.peek();
  float* scores = work.scores.get(0);
  for (int64_t p = 0; p < keys / kPanel; ++p, scores += count * kPanel) {
    const uint32_t* panel = k + (from / kPanel + p) * kPanel * packed.key_words;
    for (int64_t b = 0; b < blocks.count; ++b)
      isa_.tiles[form][count]({query + b * count * kTileStride, panel + b * blocks.words * kHalf,
                               packed.key_words * kHalf,
                               std::min(blocks.words, packed.key_words - b * blocks.words), scores,
                               b > 0, panel});
  }
}

// Adds the values of these keys, weighted, to sums that shrink by `old` first.
void Attention::add_values(const Packed& packed, const Block& block, const float* old,
                           Workspace& work) const {
  const auto [head, count, from, keys] = block;
  const uint32_t* tile = work.tile.peek();
  float* sums = work.sums.get(0);
  const uint32_t* v = values_.peek() + head * packed.values_size() + from / word_inputs_ * kHalf;
  for (int64_t p = 0; p < packed.value_panels; ++p, v += kPanel * packed.value_words) {
    float* c = sums + p * count * kPanel;
    for (int64_t i = 0; from > 0 && i < count; ++i) isa_.scale_row(c + i * kPanel, kPanel, old[i]);
    isa_.tiles[static_cast<int>(form_)][count](
        {tile, v, packed.value_words * kHalf, keys / word_inputs_, c, from > 0, tile});
  }
}

// `count` queries from `first`: query n is row n / share of the segment, head n mod share of those
// that share the key/value head.
void Attention::attend(const AttentionCall& call, int64_t head, int64_t first, int64_t count,
                       Workspace& work) const {
  const Heads& h = call.heads;
  const Packed packed(call, *this);
  const std::span<const int32_t> visible = call.visible.keys;
  const int64_t share = h.query / h.kv;
  const float scale = 1.f / std::sqrt(static_cast<float>(h.width));
  const Blocks blocks(packed.key_words, 1);
  const int64_t inputs = blocks.words * word_inputs_;
  std::array<int64_t, kRowsMax> offset{};
  std::array<int32_t, kRowsMax> seen{}, left{};
  std::array<float, kRowsMax> maximum{}, sum{}, old{};
  maximum.fill(-INFINITY);
  sum.fill(0.f);
  int32_t farthest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = (first + i) / share, query = head % h.kv * share + (first + i) % share;
    offset[at] = ((head / h.kv * call.rows + row) * h.query + query) * h.width;
    seen[at] = visible[visible.size() == 1 ? 0 : static_cast<size_t>(row)];
    farthest = std::max(farthest, seen[at]);
    for (int64_t b = 0; b < blocks.count; ++b)
      isa_.pack(form_, call.q + offset[at] + b * inputs, std::min(inputs, h.width - b * inputs),
                0.f, work.query.get(0) + (b * count + i) * kTileStride);
  }
  const int64_t keys = ceil_to(farthest, kPanel), steps = (keys + kKeyBlock - 1) / kKeyBlock;
  const int64_t step = ceil_to((keys + steps - 1) / steps, kPanel);
  for (int64_t from = 0; from < keys; from += step) {
    const int64_t here = std::min(step, keys - from);
    const Block block{head, count, from, here};
    score(packed, block, work);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      left[i] = seen[i] - static_cast<int32_t>(from);
    isa_.softmax({form_, work.scores.get(0), count, here, left.data(), scale, maximum.data(),
                  sum.data(), old.data(), work.tile.get(0)});
    add_values(packed, block, old.data(), work);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t p = 0; p < packed.value_panels; ++p) {
      float* c = work.sums.get(0) + (p * count + i) * kPanel;
      isa_.scale_row(c, kPanel, 1.f / sum[static_cast<size_t>(i)]);
      std::copy_n(c, std::min(kPanel, h.width - p * kPanel),
                  call.out + offset[static_cast<size_t>(i)] + p * kPanel);
    }
}

void Attention::run(const AttentionCall& call) {
  const Packed packed(call, *this);
  const int64_t heads = call.visible.segments * call.heads.kv;
  uint32_t* keys = keys_.get(heads * packed.keys_size());
  uint32_t* values = values_.get(heads * packed.values_size());
  for (Workspace& work : threads_) work.keys.get(kHalf * packed.key_words);
  const int64_t values_in = heads * call.keys * call.heads.width;
  pool_.run(heads * packed.key_panels, 2 * values_in / ThreadPool::kValuesPerNs,
            [&](int64_t task, int thread) {
              const int64_t head = task / packed.key_panels, p = task % packed.key_panels;
              pack_keys(call, head, p, threads_[static_cast<size_t>(thread)].keys.get(0),
                        keys + head * packed.keys_size() + p * kPanel * packed.key_words);
              pack_values(call, packed, head, p, values + head * packed.values_size());
            });
  const int64_t queries = call.rows * call.heads.query / call.heads.kv;
  const int64_t rows = isa_.tile_rows[static_cast<int>(form_)];
  const Tiling tiling(queries, rows);
  // For every thread now: which of them gets a task first is chance.
  const Blocks blocks(packed.key_words, 1);
  for (Workspace& work : threads_) {
    work.query.get(blocks.count * rows * kTileStride);
    work.sums.get(packed.value_panels * rows * kPanel);
    work.scores.get(kKeyBlock * rows);
    work.tile.get(rows * kTileStride);
  }
  const int64_t scores = heads * queries * call.keys;
  const int64_t ns =
      scores / ThreadPool::kValuesPerNs + 2 * scores * call.heads.width / macs_per_ns_;
  pool_.run(heads * tiling.count, ns, [&](int64_t task, int thread) {
    const int64_t tile = task % tiling.count;
    attend(call, task / tiling.count, tiling.first(tile), tiling.rows(tile),
           threads_[static_cast<size_t>(thread)]);
  });
}

}  // namespace tendon::cpu
