// What one instruction set brings: inner loops over packed operands, behind one table of functions.
//
// A product y = x Wᵀ runs on 32-bit words. A panel holds 32 outputs as two halves: word w of 16
// outputs stand side by side, [2][words][16]. A word is one f32, two bf16 (inputs 2w and 2w + 1,
// low half first) or four int8. The layout is the same for every instruction set, so a packed file
// fits every machine. A tile holds up to `tile_rows` rows of x, each of them `kTileStride` words
// after the one before. An instruction set without a product for the form multiplies wider words:
// bf16 as f32, int8 as two of 16 bits. Its tiles hold these, `tile_words` per word of a panel, and
// the panel is widened before it meets the tiles.
#pragma once

#include <cstdint>

namespace tendon::cpu {

inline constexpr int64_t kPanel = 32, kHalf = kPanel / 2;
// A row of a tile is at most kTileWords long. The stride is constant, so that one register and
// displacements address all rows, and no power of two, so that rows lie in different cache sets.
inline constexpr int64_t kTileWords = 512, kTileStride = kTileWords + 16;

// A float below 2^22 plus this has the nearest integer, ties to even, in its low bits.
inline constexpr float kRoundingSum = 0x1.8p23f;

enum class Form : uint8_t { f32, bf16, int8 };
inline constexpr int kForms = 3;

constexpr int64_t inputs_per_word(Form form) {
  return form == Form::f32 ? 1 : form == Form::bf16 ? 2 : 4;
}
constexpr int64_t words_of(Form form, int64_t inputs) {
  return (inputs + inputs_per_word(form) - 1) / inputs_per_word(form);
}

enum class TileActivation : uint8_t { none, gelu_tanh, silu, gated_gelu };  // what follows the bias

// Where a finished tile goes: rows of y, columns [column, column + 32) of `columns`.
// gated_gelu: the first 16 of the tile are the gate, the others the product; 16 columns result.
struct TileEpilogue {
  float* y = nullptr;               // row 0 of the tile, column 0
  int64_t columns = 0, stride = 0;  // of the result; from row to row of y
  TileActivation activation = TileActivation::none;
  const float* bias = nullptr;      // [columns]
  const float* gate = nullptr;      // [columns]
  const float* residual = nullptr;  // whole matrix, rows of `columns`; row r uses r mod rows
  int64_t residual_rows = 1, row = 0;
  // int8: y = (sum − 128 · offset[column]) · row_scale · column_scale.
  const float* row_scale = nullptr;
  const float* column_scale = nullptr;  // padded to whole panels
  const int32_t* offset = nullptr;
};

// c [rows][32] (+)= tile · panel over `words` of the tile; `half` words lie between the halves of
// the panel, which is widened; for int8 c holds int32. Meanwhile 16 / tile_words words per word are
// fetched from `next`, which must be mapped memory.
struct TileProduct {
  const uint32_t *tile, *panel;
  int64_t half, words;
  float* c;
  bool add;
  const uint32_t* next;
};

// One key block of a tile's attention: scores [panels][rows][32] before scaling. Updates the
// running maximum and sum of every row, and writes the weights of the keys as a tile of `form`, f32
// or bf16; `old` receives the factor by which what was summed so far shrinks. Row r sees visible[r]
// keys of this block. `keys` is a multiple of kPanel; hidden scores are overwritten.
struct SoftmaxBlock {
  Form form;
  float* scores;
  int64_t rows, keys;
  const int32_t* visible;
  float scale;
  float *maximum, *sum, *old;
  uint32_t* tile;
};

struct SimdKernels {
  const char* name;
  int tile_rows[kForms];
  int tile_words[kForms];  // 32-bit words of a tile per word of a packed panel: 1 or 2
  bool biased_int8;        // tiles of int8 hold x + 128, see TileEpilogue::offset
  const char* int8_method;

  using Tile = void (*)(const TileProduct& product);
  const Tile* tiles[kForms];  // by rows, 1 to tile_rows

  // Part of a row of x into a row of a tile; int8: round(x · inverse). The last word is filled up.
  void (*pack)(Form form, const float* x, int64_t columns, float inverse, uint32_t* to);
  float (*largest)(const float* x, int64_t columns);  // max |x|
  // Where tile_words is 2: `count` times 16 words of half a panel into 2 · count times 16.
  void (*widen)(Form form, const uint32_t* words, int64_t count, uint32_t* to);
  // Widened words of a panel, f32 or bf16: all of a word, or its low half, comes from one row and
  // the high half from the next, 16 of them every `stride` words.
  void (*interleave)(Form form, const float* low, const float* high, int64_t columns,
                     int64_t stride, uint32_t* to);
  void (*finish)(const float* c, int64_t rows, int64_t column, const TileEpilogue& to);

  void (*softmax)(const SoftmaxBlock& block);
  void (*scale_row)(float* x, int64_t columns, float factor);

  void (*rms_norm)(const float* x, int64_t columns, const float* scale, const float* shift,
                   float* y);
  void (*layer_norm)(const float* x, int64_t columns, const float* scale, const float* shift,
                     float* y);
  // One head in place: halves turned by cosine and sine [width / 2].
  void (*rotate)(float* x, int64_t width, const float* cosine, const float* sine);

  // Runs `rounds` of 24 independent multiply-adds of the instruction that `form` uses and returns
  // how many FLOPs (or integer operations) that was: the machine's limit.
  double (*peak)(Form form, int64_t rounds);
};

const SimdKernels* plain_kernels();
// Of builds for x86-64.
const SimdKernels* avx2_kernels();
const SimdKernels* avxvnni_kernels();
const SimdKernels* avx512_kernels();
const SimdKernels* avx512vnni_kernels();
const SimdKernels* avx512bf16_kernels();
const SimdKernels* amx_kernels();

}  // namespace tendon::cpu
