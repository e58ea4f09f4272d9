// Compiled with AVX-512, -mavx512vnni and -mavx512bf16.
#if defined(__x86_64__)
#define TENDON_VECTOR_REGISTER "v"
#include "backends/cpu/simd_avx512.h"

namespace tendon::cpu {
namespace {

struct Avx512Bf16 : Avx512Vnni {
  static constexpr const char* kName = "avx512bf16";
  static constexpr int tile_words(Form) { return 1; }
  // Flushes subnormals, as the product does anyway.
  TENDON_INLINE Halves halves(V x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }
  template <Form kForm>
  TENDON_INLINE V widen(V b, int) {
    return b;
  }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::bf16) return Avx512Vnni::mac<kForm>(acc, x, b);
    return (V)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)x, (__m512bh)(__m512i)b);
  }
};
constexpr IsaKernels kKernels = make_kernels<Avx512Bf16>();

}  // namespace
const IsaKernels* avx512bf16_kernels() { return &kKernels; }
}  // namespace tendon::cpu
#else
#include "backends/cpu/kernels.h"
const tendon::cpu::IsaKernels* tendon::cpu::avx512bf16_kernels() { return nullptr; }
#endif
