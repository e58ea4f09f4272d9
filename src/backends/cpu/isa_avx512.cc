// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl.
#if defined(__x86_64__)
#define TENDON_VECTOR_REGISTER "v"
#include "backends/cpu/simd_avx512.h"

namespace tendon::cpu {
namespace {
constexpr SimdKernels kKernels = make_kernels<Avx512>();
}
const SimdKernels* avx512_kernels() { return &kKernels; }
}  // namespace tendon::cpu
#else
#include "backends/cpu/kernels.h"
const tendon::cpu::SimdKernels* tendon::cpu::avx512_kernels() { return nullptr; }
#endif
