// The product of one tile with one panel, packing of tiles, and what follows a product; generic
// over an instruction set S. See kernels.h for the layouts.
//
// S also gives: Halves and Bytes (lanes of uint16_t and uint8_t), kVectors (vectors of a panel in
// flight), and per form: tile_rows(form), tile_words(form), `mac<Form>(acc, tile words, panel
// vector)`, `widened<Form>` where a word of the panel is widened into two. An instruction set that
// multiplies in another way gives product<Form, rows>() and peak<Form>(rounds) instead.
#pragma once

#include <bit>

#include "backends/cpu/kernels.h"
#include "backends/cpu/vector_math.h"

namespace tendon::cpu {
namespace {

// Lanes of the accumulator: int32 for int8, float otherwise; the same bits move either way.
template <class S, Form kForm, int kRowCount>
void tile_product(const TileProduct& product) {
  const auto [tile, panel, half, words, c, add, next] = product;
  using V = typename S::V;
  constexpr int kLanes = S::kLanes, kVectors = S::kVectors;
  for (int first = 0; first < kPanel; first += kVectors * kLanes) {
    V acc[kRowCount][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        acc[r][v] = add ? load<S>(c + r * kPanel + first + v * kLanes) : V{};
    const uint32_t* t = tile;
    const uint32_t* p = panel + first / kHalf * half + first % kHalf;
    for (int64_t w = 0; w < words; ++w, ++t, p += kHalf) {
      if (first == 0) __builtin_prefetch(next + w * (kHalf / S::tile_words(kForm)), 0, 2);
      V b[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        b[v] = load<S>(v * kLanes < kHalf ? p + v * kLanes : p + half + v * kLanes - kHalf);
#pragma GCC unroll 16
      for (int r = 0; r < kRowCount; ++r) {
        const V x = S::broadcast(t + r * kTileStride);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[r][v] = S::template mac<kForm>(acc[r][v], x, b[v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store<S>(c + r * kPanel + first + v * kLanes, acc[r][v]);
  }
}

template <class S, Form kForm>
void widen_words(const uint32_t* words, int64_t count, uint32_t* to) {
  if constexpr (S::tile_words(kForm) == 2)
    for (int64_t w = 0; w < count; ++w, words += kHalf, to += 2 * kHalf)
      for (int64_t i = 0; i < kHalf; i += S::kLanes)
        for (int part = 0; part < 2; ++part) {
          const auto wide = S::template widened<kForm>(load<S>(words + i), part);
          std::memcpy(to + part * kHalf + i, &wide, sizeof(wide));
        }
}

template <class S>
void widen(Form form, const uint32_t* words, int64_t count, uint32_t* to) {
  if (form == Form::bf16) widen_words<S, Form::bf16>(words, count, to);
  if (form == Form::int8) widen_words<S, Form::int8>(words, count, to);
}

template <class S, Form kForm, int kRowCount>
constexpr SimdKernels::Tile product_of() {
  if constexpr (requires { S::template product<kForm, kRowCount>(); })
    return S::template product<kForm, kRowCount>();
  else
    return &tile_product<S, kForm, kRowCount>;
}

template <class S, Form kForm>
struct Tiles {
  SimdKernels::Tile by_rows[S::tile_rows(kForm) + 1];
  template <int... kRow>
  static constexpr Tiles make(std::integer_sequence<int, kRow...>) {
    return {{nullptr, product_of<S, kForm, kRow + 1>()...}};
  }
};

template <class S, Form kForm>
constexpr Tiles<S, kForm> kTiles =
    Tiles<S, kForm>::make(std::make_integer_sequence<int, S::tile_rows(kForm)>());

inline uint32_t word_of(float x) {
  uint32_t w;
  std::memcpy(&w, &x, sizeof(w));
  return w;
}

inline uint32_t bf16_of(float x) {  // low half
  const uint32_t b = word_of(x);
  if ((b & 0x7FFFFFFFu) > 0x7F800000u) return (b | 0x00400000u) >> 16;
  return (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
}

// A word per input, in its high half, or a word per two inputs.
template <class S, bool kWide>
void pack_bf16(const float* x, int64_t columns, uint32_t* to) {
  constexpr int64_t kLanes = S::kLanes, kWords = kWide ? kLanes : kLanes / 2;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes, to += kWords) store_bf16<S, kWide>(load<S>(x + c), to);
  // An even rest goes in one more vector, over what is there already.
  const int64_t rest = columns - c;
  if (rest > 0 && rest % 2 == 0 && c > 0)
    return store_bf16<S, kWide>(load<S>(x + columns - kLanes),
                                to - (kLanes - rest) / (kLanes / kWords));
  for (; c < columns; c += 2) {
    const uint32_t low = bf16_of(x[c]), high = c + 1 < columns ? bf16_of(x[c + 1]) : 0;
    if (kWide) *to++ = low << 16;
    *to++ = kWide ? high << 16 : low | high << 16;
  }
}

template <class S>
void interleave(Form form, const float* low, const float* high, int64_t columns, int64_t stride,
                uint32_t* to) {
  static_assert(kHalf % S::kLanes == 0);
  constexpr bool kWide = S::tile_words(Form::bf16) == 2;
  const auto place = [&](int64_t c) { return to + c / kHalf * stride + c % kHalf; };
  int64_t c = 0;
  for (; c + S::kLanes <= columns; c += S::kLanes) {
    typename S::I words = bits<S>(load<S>(low + c));
    if constexpr (kWide) {
      if (form != Form::f32) words = round_bf16<S>(load<S>(low + c));
    } else {
      if (form != Form::f32) words = S::pairs(load<S>(low + c), load<S>(high + c));
    }
    std::memcpy(place(c), &words, sizeof(words));
  }
  for (; c < columns; ++c) {
    const uint32_t pair = kWide ? bf16_of(low[c]) << 16 : bf16_of(low[c]) | bf16_of(high[c]) << 16;
    *place(c) = form == Form::f32 ? word_of(low[c]) : pair;
  }
}

// round(x · inverse), ties to even, by the same sum everywhere.
template <class S>
TENDON_INLINE typename S::I quantised(typename S::V x, float inverse) {
  return bits<S>(x * inverse + kRoundingSum) - std::bit_cast<int32_t>(kRoundingSum);
}

// Four inputs: one word of bytes + 128 or, widened, inputs 0 and 2, then 1 and 3 as pairs of 16
// bits.
template <class S>
void pack_int8(const float* x, int64_t columns, float inverse, uint32_t* to) {
  constexpr int kLanes = S::kLanes;
  constexpr bool kWide = S::tile_words(Form::int8) == 2;
  for (int64_t c = 0; c < columns; c += kLanes) {
    typename S::V v = {};
    if (c + kLanes <= columns)
      v = load<S>(x + c);
    else
      std::memcpy(&v, x + c, static_cast<size_t>(columns - c) * sizeof(float));
    const typename S::I q = quantised<S>(v, inverse);
    const int64_t words = columns - c < kLanes ? (columns - c + 3) / 4 : kLanes / 4;
    if constexpr (kWide) {
      uint64_t pairs[kLanes / 2];
      std::memcpy(pairs, &q, sizeof(pairs));
      for (int64_t w = 0; w < words; ++w, to += 2) {
        constexpr uint64_t kLow = 0x0000FFFF0000FFFFu;
        const uint64_t both = (pairs[2 * w] & kLow) | (pairs[2 * w + 1] & kLow) << 16;
        std::memcpy(to, &both, sizeof(both));
      }
    } else {
      const auto bytes = __builtin_convertvector(q + 128, typename S::Bytes);
      std::memcpy(to, &bytes, static_cast<size_t>(words) * sizeof(uint32_t));
      to += words;
    }
  }
}

template <class S>
void pack(Form form, const float* x, int64_t columns, float inverse, uint32_t* to) {
  if (form == Form::f32) std::memcpy(to, x, static_cast<size_t>(columns) * sizeof(float));
  if (form == Form::bf16) pack_bf16<S, S::tile_words(Form::bf16) == 2>(x, columns, to);
  if (form == Form::int8) pack_int8<S>(x, columns, inverse, to);
}

template <class S>
TENDON_INLINE typename S::V activated(TileActivation activation, typename S::V x) {
  if (activation == TileActivation::gelu_tanh) return gelu_tanh<S>(x);
  if (activation == TileActivation::silu) return silu<S>(x);
  return x;
}

// Sums of the tile as float.
template <class S>
TENDON_INLINE typename S::V sums(const float* c, int64_t column, float row_scale,
                                 const TileEpilogue& to) {
  const typename S::V raw = load<S>(c);
  if (!to.row_scale) return raw;
  typename S::I whole = bits<S>(raw);
  if (to.offset) {
    typename S::I offset;
    std::memcpy(&offset, to.offset + column, sizeof(offset));
    whole -= offset * 128;
  }
  return __builtin_convertvector(whole, typename S::V) * row_scale *
         load<S>(to.column_scale + column);
}

struct Operands {  // of one row, from a column on; null: none
  const float *bias, *gate, *residual;
};

// Columns [column, column + kLanes) of one row; pointers address full vectors.
template <class S>
TENDON_INLINE void finish_vector(typename S::V x, const Operands& from, TileActivation activation,
                                 float* y) {
  const auto [bias, gate, residual] = from;
  if (bias) x += load<S>(bias);
  x = activated<S>(activation, x);
  if (gate) x *= load<S>(gate);
  if (residual) x = load<S>(residual) + x;
  store<S>(y, x);
}

template <class S>
TENDON_INLINE void finish_part(typename S::V x, int64_t part, const Operands& from,
                               TileActivation activation, float* y) {
  const auto [bias, gate, residual] = from;
  float padded[4][S::kLanes] = {};
  const size_t bytes = static_cast<size_t>(part) * sizeof(float);
  if (bias) std::memcpy(padded[0], bias, bytes);
  if (gate) std::memcpy(padded[1], gate, bytes);
  if (residual) std::memcpy(padded[2], residual, bytes);
  finish_vector<S>(
      x, {bias ? padded[0] : nullptr, gate ? padded[1] : nullptr, residual ? padded[2] : nullptr},
      activation, padded[3]);
  std::memcpy(y, padded[3], bytes);
}

template <class S>
void finish(const float* c, int64_t rows, int64_t column, const TileEpilogue& to) {
  constexpr int64_t kLanes = S::kLanes;
  const bool gated = to.activation == TileActivation::gated_gelu;
  const int64_t width = gated ? kHalf : kPanel, first = gated ? column / 2 : column;
  for (int64_t r = 0; r < rows; ++r, c += kPanel) {
    const float row_scale = to.row_scale ? to.row_scale[r] : 1.f;
    const float* residual =
        to.residual ? to.residual + (to.row + r) % to.residual_rows * to.columns : nullptr;
    for (int64_t i = 0; i < width && first + i < to.columns; i += kLanes) {
      const int64_t at = first + i, left = to.columns - at;
      typename S::V x = sums<S>(c + i, column + i, row_scale, to);
      if (gated) x = gelu_tanh<S>(x) * sums<S>(c + kHalf + i, column + kHalf + i, row_scale, to);
      const Operands from{to.bias ? to.bias + at : nullptr, to.gate ? to.gate + at : nullptr,
                          residual ? residual + at : nullptr};
      float* y = to.y + r * to.stride + at;
      if (left >= kLanes)
        finish_vector<S>(x, from, to.activation, y);
      else
        finish_part<S>(x, left, from, to.activation, y);
    }
  }
}

// 24 chains are enough to hide the latency of every multiply-add.
template <class S, Form kForm>
double peak_of(int64_t rounds) {
  if constexpr (requires { S::template peak<kForm>(rounds); })
    return S::template peak<kForm>(rounds);
  using V = typename S::V;
  constexpr int kChains = S::kPeakChains;
  V acc[kChains];
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) acc[i] = V{};
  uint32_t words[S::kLanes] = {};
  asm volatile("" : "+m"(words));
  V x = load<S>(words), b = load<S>(words);
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) {
      acc[i] = S::template mac<kForm>(acc[i], x, b);
      asm volatile("" : "+" TENDON_VECTOR_REGISTER(acc[i]), "+" TENDON_VECTOR_REGISTER(x));
    }
  }
  // Stored to memory instead, the last one would live there in the loop, too.
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) asm volatile("" : : TENDON_VECTOR_REGISTER(acc[i]));
  const double macs = static_cast<double>(inputs_per_word(kForm)) / S::tile_words(kForm);
  return 2.0 * macs * S::kLanes * kChains * static_cast<double>(rounds);
}

template <class S>
double peak(Form form, int64_t rounds) {
  if (form == Form::f32) return peak_of<S, Form::f32>(rounds);
  if (form == Form::bf16) return peak_of<S, Form::bf16>(rounds);
  return peak_of<S, Form::int8>(rounds);
}

}  // namespace
}  // namespace tendon::cpu
