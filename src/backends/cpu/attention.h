// Blocked attention with an online softmax: no score matrix in memory.
#pragma once

#include <span>
#include <vector>

#include "backends/cpu/linear.h"

namespace tendon::cpu {

struct AttentionShape {
  int64_t rows = 0, keys = 0;  // per segment
  int64_t segments = 1;
  Heads heads;
};

class Attention {
 public:
  // `form`: of the operands of both products; sums and softmax are f32.
  Attention(const SimdKernels& isa, ThreadPool& pool, Form form, int64_t macs_per_ns)
      : isa_(isa),
        pool_(pool),
        form_(form),
        macs_per_ns_(macs_per_ns),
        threads_(static_cast<size_t>(pool.threads())) {}

  // q and out [segments * rows, query * width], k and v [segments * keys, kv * width].
  void run(const float* q, const float* k, const float* v, const AttentionShape& shape,
           std::span<const int32_t> visible, float* out);

 private:
  // K and V of one key/value head of one segment in panels, and how many words that takes.
  struct Packed {
    int64_t key_words, value_words, key_panels, value_panels;
    int64_t keys_size() const { return key_panels * kPanel * key_words; }
    int64_t values_size() const { return value_panels * kPanel * value_words; }
  };
  struct Workspace {                      // of one thread
    Scratch<uint32_t> keys, query, tile;  // tile: of weights
    Scratch<float> scores, weights, sums;
  };

  Packed packed_size(const AttentionShape& shape) const;
  void pack_keys(const float* k, const AttentionShape& shape, const Packed& packed, int64_t head,
                 int64_t panel, uint32_t* rows, uint32_t* to) const;
  void pack_values(const float* v, const AttentionShape& shape, const Packed& packed, int64_t head,
                   int64_t panel, uint32_t* to) const;
  void score(const uint32_t* k, const Packed& packed, int64_t count, int64_t from, int64_t keys,
             Workspace& work) const;
  void add_values(const uint32_t* v, const Packed& packed, int64_t count, int64_t from,
                  int64_t keys, const float* old, Workspace& work) const;
  void attend(const float* q, const AttentionShape& shape, const Packed& packed, int64_t head,
              int64_t first, int64_t count, std::span<const int32_t> visible, Workspace& work,
              float* out) const;

  const SimdKernels& isa_;
  ThreadPool& pool_;
  Form form_;
  int64_t macs_per_ns_;
  Scratch<uint32_t> keys_, values_;
  std::vector<Workspace> threads_;
};

}  // namespace tendon::cpu
