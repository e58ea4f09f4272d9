// Compiled with AVX-512, -mavx512vnni and -mavx512bf16.
#if defined(__x86_64__)
#include "backends/cpu/simd_avx512.h"

const tendon::cpu::SimdKernels* tendon::cpu::avx512bf16_kernels() { return &kKernels<Avx512Bf16>; }
#endif
