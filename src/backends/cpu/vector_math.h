// Plain vector arithmetic for one instruction set, generic over its wrapper S: S::V (lanes of
// float), S::I (lanes of int32), S::kLanes, S::fma. Included only by the files of an instruction
// set; everything has internal linkage so that no other file picks up wider instructions.
#pragma once

#include <cstdint>
#include <cstring>

#include "backends/cpu/kernels.h"

#define TENDON_INLINE static inline __attribute__((always_inline))

namespace tendon::cpu {
namespace {

// Lanes of float or, with the same bits, of words.
template <class S, class Lane>
TENDON_INLINE typename S::V load(const Lane* p) {
  typename S::V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class S>
TENDON_INLINE void store(float* p, typename S::V v) {
  std::memcpy(p, &v, sizeof(v));
}

template <class S>
TENDON_INLINE typename S::V all(float x) {
  return x - typename S::V{};
}

template <class S>
TENDON_INLINE typename S::I bits(typename S::V v) {
  return (typename S::I)v;
}

template <class S>
TENDON_INLINE typename S::V from_bits(typename S::I i) {
  return (typename S::V)i;
}

template <class S>
TENDON_INLINE float sum_lanes(typename S::V v) {
  float lanes[S::kLanes];
  store<S>(lanes, v);
  for (int half = S::kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// e^x to 1e-7 relative: x = n ln 2 + r, a polynomial for e^r, n into the exponent. Arguments are
// clamped to ±87, where the result is still a normal number.
template <class S>
TENDON_INLINE typename S::V exp(typename S::V x) {
  using V = typename S::V;
  const V low = all<S>(-87.f), high = all<S>(87.f), sum = all<S>(kRoundingSum);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const V shifted = S::fma(x, all<S>(1.44269504f), sum);
  const V n = shifted - sum;
  V r = S::fma(n, all<S>(-0.693359375f), x);
  r = S::fma(n, all<S>(2.12194440e-4f), r);
  V p = all<S>(1.9875691500e-4f);
  p = S::fma(p, r, all<S>(1.3981999507e-3f));
  p = S::fma(p, r, all<S>(8.3334519073e-3f));
  p = S::fma(p, r, all<S>(4.1665795894e-2f));
  p = S::fma(p, r, all<S>(1.6666665459e-1f));
  p = S::fma(p, r, all<S>(5.0000001201e-1f));
  p = S::fma(p, r * r, r + 1.f);
  return from_bits<S>(bits<S>(p) + (bits<S>(shifted) << 23));
}

// x / (1 + e^-x)
template <class S>
TENDON_INLINE typename S::V silu(typename S::V x) {
  return x / (exp<S>(-x) + 1.f);
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^(−2u)) with u = sqrt(2/π) (x + 0.044715 x³)
template <class S>
TENDON_INLINE typename S::V gelu_tanh(typename S::V x) {
  const typename S::V u = S::fma(x * x * x, all<S>(0.044715f), x) * -1.5957691216f;
  return x / (exp<S>(u) + 1.f);
}

// To bfloat16, nearest even, left in the high half of each lane. Not-a-number stays one: rounding
// cannot carry out of a quiet NaN's mantissa.
template <class S>
TENDON_INLINE typename S::I round_bf16(typename S::V x) {
  using I = typename S::I;
  const I b = bits<S>(x);
  const I rounded = (b + 0x7FFF + ((b >> 16) & 1)) & static_cast<int32_t>(0xFFFF0000);
  const I nan = (b & 0x7FFFFFFF) > 0x7F800000;
  return nan ? ((b | 0x00400000) & static_cast<int32_t>(0xFFFF0000)) : rounded;
}

// Lanes as bfloat16: a 32-bit word each, in its high half, or two in a word.
template <class S, bool kWide>
TENDON_INLINE void store_bf16(typename S::V x, uint32_t* to) {
  if constexpr (kWide) {
    const typename S::I rounded = round_bf16<S>(x);
    std::memcpy(to, &rounded, sizeof(rounded));
  } else {
    const typename S::Halves halves = S::halves(x);
    std::memcpy(to, &halves, sizeof(halves));
  }
}

}  // namespace
}  // namespace tendon::cpu
