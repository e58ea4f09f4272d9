// Compiled with the same and -mavx512vnni.
#if defined(__x86_64__)
#include "backends/cpu/simd_avx512.h"

const tendon::cpu::SimdKernels* tendon::cpu::avx512vnni_kernels() { return &kKernels<Avx512Vnni>; }
#endif
