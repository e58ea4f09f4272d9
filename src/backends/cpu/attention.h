// Blocked attention with an online softmax: no score matrix in memory.
#pragma once

#include <span>
#include <vector>

#include "backends/cpu/linear.h"

namespace tendon::cpu {

// q and out [segments * rows, query * width], k and v [segments * keys, kv * width].
struct AttentionCall {
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  float* out = nullptr;
  int64_t rows = 0, keys = 0;  // per segment
  Heads heads;
  Visibility visible;
};

class Attention {
 public:
  // `form`: of the operands of both products; sums and softmax are f32.
  Attention(const SimdKernels& isa, ThreadPool& pool, Form form, int64_t macs_per_ns)
      : isa_(isa),
        pool_(pool),
        form_(form),
        word_inputs_(inputs_per_word(form) / isa.tile_words[static_cast<int>(form)]),
        macs_per_ns_(macs_per_ns),
        threads_(static_cast<size_t>(pool.threads())) {}

  void run(const AttentionCall& call);

 private:
  // K and V of one key/value head of one segment in widened panels, and how many words that takes.
  struct Packed {
    int64_t key_words, value_words, key_panels, value_panels;
    Packed(const AttentionCall& call, const Attention& attention);
    int64_t keys_size() const { return key_panels * kPanel * key_words; }
    int64_t values_size() const { return value_panels * kPanel * value_words; }
  };
  struct Workspace {                      // of one thread
    Scratch<uint32_t> keys, query, tile;  // tile: of weights
    Scratch<float> scores, sums;
  };

  // `count` queries of key/value head `head` with keys [from, from + keys).
  struct Block {
    int64_t head, count, from, keys;
  };

  void pack_keys(const AttentionCall& call, int64_t head, int64_t panel, uint32_t* rows,
                 uint32_t* to) const;
  void pack_values(const AttentionCall& call, const Packed& packed, int64_t head, int64_t panel,
                   uint32_t* to) const;
  void score(const Packed& packed, const Block& block, Workspace& work) const;
  void add_values(const Packed& packed, const Block& block, const float* old,
                  Workspace& work) const;
  void attend(const AttentionCall& call, int64_t head, int64_t first, int64_t count,
              Workspace& work) const;

  const SimdKernels& isa_;
  ThreadPool& pool_;
  Form form_;
  int64_t word_inputs_;  // inputs of a widened word
  int64_t macs_per_ns_;
  Scratch<uint32_t> keys_, values_;
  std::vector<Workspace> threads_;
};

}  // namespace tendon::cpu
