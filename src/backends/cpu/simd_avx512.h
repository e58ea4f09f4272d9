// AVX-512: sixteen lanes, fourteen rows by two vectors in thirty-two registers.
#pragma once

#include <immintrin.h>

#define TENDON_VECTOR_REGISTER "v"
#include "backends/cpu/make_kernels.h"

namespace tendon::cpu {
namespace {

struct Avx512 {
  using V = float __attribute__((vector_size(64)));
  using I = int32_t __attribute__((vector_size(64)));
  using Halves = uint16_t __attribute__((vector_size(32)));
  using Bytes = uint8_t __attribute__((vector_size(16)));
  static constexpr const char* kName = "avx512";
  static constexpr const char* kInt8Method = "16-bit products (vpmaddwd), exact";
  static constexpr int kLanes = 16, kRows = 14, kVectors = 2, kPeakChains = 24;
  static constexpr int tile_rows(Form) { return kRows; }
  static constexpr int tile_words(Form form) { return form == Form::f32 ? 1 : 2; }

  TENDON_INLINE V fma(V a, V b, V c) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
  TENDON_INLINE Halves halves(V x) {
    return __builtin_convertvector(round_bf16<Avx512>(x) >> 16, Halves);
  }
  TENDON_INLINE V broadcast(const uint32_t* word) {
    return (V)_mm512_set1_ps(*reinterpret_cast<const float*>(word));
  }
  template <Form kForm>
  TENDON_INLINE V widened(V b, int part) {
    if constexpr (kForm == Form::bf16) return part == 0 ? (V)((I)b << 16) : (V)((I)b & -0x10000);
    const __m512i w = (__m512i)b;
    return (V)_mm512_srai_epi16(part == 0 ? _mm512_slli_epi16(w, 8) : w, 8);
  }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::int8) return fma(x, b, acc);
    V pairs;  // as an intrinsic, gcc 12 keeps all pairs alive and spills sums
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(acc), "=&v"(pairs) : "v"(x), "v"(b));
    return acc;
  }
};

#ifdef __AVX512VNNI__
struct Avx512Vnni : Avx512 {
  static constexpr const char* kName = "avx512vnni";
  static constexpr const char* kInt8Method = "vpdpbusd, exact";
  static constexpr int tile_words(Form form) { return form == Form::bf16 ? 2 : 1; }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::int8) return fma(x, b, acc);
    return (V)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)b);
  }
};
#endif

#ifdef __AVX512BF16__
struct Avx512Bf16 : Avx512Vnni {
  static constexpr const char* kName = "avx512bf16";
  static constexpr int tile_words(Form) { return 1; }
  // Flushes subnormals, as the product does anyway.
  TENDON_INLINE Halves halves(V x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }
  TENDON_INLINE I pairs(V low, V high) {
    return __builtin_convertvector(halves(low), I) | __builtin_convertvector(halves(high), I) << 16;
  }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::bf16) return Avx512Vnni::mac<kForm>(acc, x, b);
    return (V)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)x, (__m512bh)(__m512i)b);
  }
};
#endif

}  // namespace
}  // namespace tendon::cpu
