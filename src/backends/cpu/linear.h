// Cache-blocked products over packed panels, shared out over the threads.
#pragma once

#include <span>
#include <vector>

#include "backends/cpu/packed_weight.h"
#include "backends/cpu/scratch.h"

namespace tendon::cpu {

// How `rows` fall into tiles of at most `most` rows, as equal as possible.
struct Tiling {
  int64_t count, base, larger;  // `larger` tiles of base + 1 rows come first

  Tiling(int64_t rows, int64_t most)
      : count((rows + most - 1) / most), base(rows / count), larger(rows % count) {}
  int64_t first(int64_t tile) const { return tile * base + (tile < larger ? tile : larger); }
  int64_t rows(int64_t tile) const { return base + (tile < larger ? 1 : 0); }
};

// How the words of a weight fall into blocks that a row of a tile can hold, as equal as possible.
struct Blocks {
  int64_t count, words;  // words of the panel per block; the last one may be shorter

  Blocks(int64_t all, int64_t tile_words_per_word)
      : count((all * tile_words_per_word + kTileWords - 1) / kTileWords),
        words((all + count - 1) / count) {}
};

// So many blocks of a tile follow each other, so that its sums stay near.
inline constexpr int64_t kBlocksTogether = 2;
inline constexpr int64_t kBlockWords = kTileWords * kPanel;  // of one panel, widened

class Products {
 public:
  // `macs_per_ns`: about how many multiply-adds one thread does, at least 1.
  Products(const SimdKernels& isa, ThreadPool& pool, int64_t macs_per_ns);

  // Columns of the result from `first` on (a multiple of kPanel) that go to a matrix of their own.
  struct Part {
    int64_t first;
    float* y;
    int64_t columns;
  };

  // x [rows, w.inputs] times the weight; `finish` says what follows and where to (its stride, row,
  // row_scale, column_scale and offset are filled in here). `parts`, in order and beginning with
  // column 0, take the place of its y.
  void product(const float* x, int64_t rows, const PackedWeight& w, TileEpilogue finish,
               std::span<const Part> parts = {});

 private:
  // Blocks [first, last) of all rows of x, as one step through the weight.
  struct Pass {
    Blocks blocks;
    int64_t first, last;
    // Every tile goes through all blocks before the next one: no sums wait.
    bool is_straight() const {
      return blocks.count <= kBlocksTogether && first == 0 && last == blocks.count;
    }
  };
  struct Product {
    const PackedWeight& w;
    int64_t rows;
    TileEpilogue finish;
    std::span<const Part> parts;
  };
  struct Group {  // panels [first, last)
    int64_t first, last;
    float* sums;
    uint32_t* widened;  // [panels][kBlocksTogether][kBlockWords]
  };
  struct Workspace {  // of one thread
    Scratch<float> sums;
    Scratch<uint32_t> widened;
  };
  void pack(const float* x, const Product& product, const Pass& pass);
  void widen(const PackedWeight& w, const Blocks& blocks, const Group& group, int64_t block) const;
  void multiply(const Product& product, const Pass& pass, const Group& group);

  const SimdKernels& isa_;
  ThreadPool& pool_;
  int64_t macs_per_ns_;
  int64_t group_most_;         // panels of a task
  Scratch<uint32_t> tiles_;    // [blocks of the pass][rows][kTileStride]
  Scratch<float> row_scales_;  // int8: [rows] and their inverses [rows]
  Scratch<float> waiting_;     // sums between passes
  std::vector<Workspace> threads_;
};

}  // namespace tendon::cpu
