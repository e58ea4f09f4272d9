// Compiled with the same as AVX512-BF16 and -mamx-tile, -mamx-bf16, -mamx-int8: a unit beside the
// vectors multiplies matrices of 16 rows of 64 bytes. f32 and everything else goes as in
// AVX512-BF16.
#if defined(__x86_64__)
#include "backends/cpu/simd_avx512.h"

namespace tendon::cpu {
namespace {

// A matrix register: so many rows, and words of a row.
constexpr int kTileRows = 16;
constexpr int64_t kStep = 16;

// What LDTILECFG reads. Sums are in registers 0 to 3 (two by two), rows of x in 4 and 5, the halves
// of a panel in 6 and 7.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

constexpr TileConfig config_of(int rows) {
  TileConfig config;
  const int upper = rows < kTileRows ? rows : kTileRows, lower = rows - upper;
  const int by_register[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(by_register[i]);
    config.row_bytes[i] = by_register[i] > 0 ? 64 : 0;
  }
  return config;
}

// One step: sums += x [rows, 16 words] times both halves of the panel [16 words, 16].
template <Form kForm, bool kLower>
TENDON_INLINE void step(const uint32_t* x, int64_t x_stride, const uint32_t* left,
                        const uint32_t* right) {
  constexpr int64_t kRow = kHalf * 4;
  _tile_loadd(6, left, kRow);
  _tile_loadd(4, x, x_stride);
  _tile_loadd(7, right, kRow);
  if constexpr (kLower) _tile_loadd(5, x + kTileRows * x_stride / 4, x_stride);
  if constexpr (kForm == Form::bf16) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kLower) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kLower) _tile_dpbf16ps(3, 5, 7);
  } else {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if constexpr (kLower) _tile_dpbusd(2, 5, 6);
    if constexpr (kLower) _tile_dpbusd(3, 5, 7);
  }
}

// `count` of 16 words of each row; the others become zeros.
TENDON_INLINE void copy_words(const uint32_t* from, int64_t stride, int64_t rows, int64_t count,
                              uint32_t* to) {
  const auto mask = static_cast<__mmask16>((1U << count) - 1);
  for (int64_t r = 0; r < rows; ++r)
    _mm512_store_si512(to + r * kStep, _mm512_maskz_loadu_epi32(mask, from + r * stride));
}

// As tile_product of products.h, for rows of x in one or two registers. Nothing is fetched ahead:
// the lines of the matrices take all that the level-1 cache can have under way.
template <Form kForm, int kRowCount>
void matrix_product(const TileProduct& product) {
  const auto [tile, panel, half, words, c, add, next] = product;
  constexpr bool kLower = kRowCount > kTileRows;
  constexpr int64_t kSums = kPanel * 4, kX = kTileStride * 4;
  static constexpr TileConfig kConfig = config_of(kRowCount);
  _tile_loadconfig(&kConfig);  // all registers become zero
  float* lower = c + kTileRows * kPanel;
  if (add) {
    _tile_loadd(0, c, kSums);
    _tile_loadd(1, c + kHalf, kSums);
    if constexpr (kLower) _tile_loadd(2, lower, kSums);
    if constexpr (kLower) _tile_loadd(3, lower + kHalf, kSums);
  }
  int64_t w = 0;
  for (; w + kStep <= words; w += kStep)
    step<kForm, kLower>(tile + w, kX, panel + w * kHalf, panel + half + w * kHalf);
  if (w < words) {  // the last step is short: zeros fill it up
    alignas(64) uint32_t x[kRowCount * kStep], halves[2][kStep * kHalf] = {};
    copy_words(tile + w, kTileStride, kRowCount, words - w, x);
    for (int side = 0; side < 2; ++side)
      copy_words(panel + side * half + w * kHalf, kHalf, words - w, kHalf, halves[side]);
    asm volatile("" ::: "memory");  // the instructions below do not say what they read
    step<kForm, kLower>(x, kStep * 4, halves[0], halves[1]);
  }
  _tile_stored(0, c, kSums);
  _tile_stored(1, c + kHalf, kSums);
  if constexpr (kLower) _tile_stored(2, lower, kSums);
  if constexpr (kLower) _tile_stored(3, lower + kHalf, kSums);
  _tile_release();
}

template <Form kForm>
double matrix_peak(int64_t rounds) {
  static constexpr TileConfig kConfig = config_of(2 * kTileRows);
  alignas(64) uint32_t zeros[kTileRows * kStep] = {};
  asm volatile("" : "+m"(zeros));
  _tile_loadconfig(&kConfig);
  for (int64_t n = 0; n < rounds; ++n) step<kForm, true>(zeros, 64, zeros, zeros);
  _tile_release();
  return 2.0 * 4 * kTileRows * kHalf * kStep * static_cast<double>(inputs_per_word(kForm)) *
         static_cast<double>(rounds);
}

struct Amx : Avx512Bf16 {
  static constexpr const char* kName = "amx";
  static constexpr const char* kInt8Method = "tdpbusd, exact";
  static constexpr int tile_rows(Form form) { return form == Form::f32 ? kRows : 2 * kTileRows; }
  template <Form kForm, int kRowCount>
  requires(kForm != Form::f32) static constexpr SimdKernels::Tile product() {
    return &matrix_product<kForm, kRowCount>;
  }
  template <Form kForm>
  requires(kForm != Form::f32) static double peak(int64_t rounds) {
    return matrix_peak<kForm>(rounds);
  }
};

}  // namespace

const SimdKernels* amx_kernels() { return &kKernels<Amx>; }

}  // namespace tendon::cpu
#endif
