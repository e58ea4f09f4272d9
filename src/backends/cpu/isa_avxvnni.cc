// Compiled with -mavx2 -mfma -mavxvnni.
#if defined(__x86_64__)
#include "backends/cpu/simd_avx2.h"

namespace tendon::cpu {
namespace {

struct AvxVnni : Avx2 {
  static constexpr const char* kName = "avxvnni";
  static constexpr const char* kInt8Method = "vpdpbusd, exact";
  static constexpr int tile_words(Form form) { return form == Form::bf16 ? 2 : 1; }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::int8) return Avx2::mac<kForm>(acc, x, b);
    return (V)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)x, (__m256i)b);
  }
};

}  // namespace

const SimdKernels* avxvnni_kernels() { return &kKernels<AvxVnni>; }

}  // namespace tendon::cpu
#endif
