// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl.
#if defined(__x86_64__)
#include "backends/cpu/simd_avx512.h"

const tendon::cpu::SimdKernels* tendon::cpu::avx512_kernels() { return &kKernels<Avx512>; }
#endif
