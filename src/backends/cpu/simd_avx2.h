// AVX2 and FMA: eight lanes, six rows by two vectors in sixteen registers.
#pragma once

#include <immintrin.h>

#define TENDON_VECTOR_REGISTER "x"
#include "backends/cpu/make_kernels.h"

namespace tendon::cpu {
namespace {

struct Avx2 {
  using V = float __attribute__((vector_size(32)));
  using I = int32_t __attribute__((vector_size(32)));
  using Halves = uint16_t __attribute__((vector_size(16)));
  using Bytes = uint8_t __attribute__((vector_size(8)));
  static constexpr const char* kName = "avx2";
  static constexpr const char* kInt8Method = "16-bit products (vpmaddwd), exact";
  static constexpr int kLanes = 8, kRows = 6, kVectors = 2, kPeakChains = 10;  // without a spill
  static constexpr int tile_rows(Form) { return kRows; }
  static constexpr int tile_words(Form form) { return form == Form::f32 ? 1 : 2; }

  TENDON_INLINE V fma(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
  TENDON_INLINE Halves halves(V x) {
    return __builtin_convertvector(round_bf16<Avx2>(x) >> 16, Halves);
  }
  TENDON_INLINE V broadcast(const uint32_t* word) {
    return (V)_mm256_broadcast_ss(reinterpret_cast<const float*>(word));
  }
  template <Form kForm>
  TENDON_INLINE V widened(V b, int part) {
    if constexpr (kForm == Form::bf16)
      return part == 0 ? (V)((I)b << 16) : (V)_mm256_blend_epi16(__m256i{}, (__m256i)b, 0xAA);
    const __m256i w = (__m256i)b;
    return (V)_mm256_srai_epi16(part == 0 ? _mm256_slli_epi16(w, 8) : w, 8);
  }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::int8) {
      // As an intrinsic, gcc 12 moves sums between registers and spills four of twelve.
      asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(x), "x"(b));
      return acc;
    }
    V pairs;  // for the same reason
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(pairs) : "x"(x), "x"(b));
    return acc;
  }
};

}  // namespace
}  // namespace tendon::cpu
