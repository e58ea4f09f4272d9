// Compiled with -mavx2 -mfma.
#if defined(__x86_64__)
#define TENDON_VECTOR_REGISTER "x"
#include "backends/cpu/simd_avx2.h"

namespace tendon::cpu {
namespace {
constexpr SimdKernels kKernels = make_kernels<Avx2>();
}
const SimdKernels* avx2_kernels() { return &kKernels; }
}  // namespace tendon::cpu
#else
#include "backends/cpu/kernels.h"
const tendon::cpu::SimdKernels* tendon::cpu::avx2_kernels() { return nullptr; }
#endif
