// Compiled with -mavx2 -mfma.
#if defined(__x86_64__)
#include "backends/cpu/simd_avx2.h"

const tendon::cpu::SimdKernels* tendon::cpu::avx2_kernels() { return &kKernels<Avx2>; }
#endif
