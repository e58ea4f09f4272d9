// Compiled with the same and -mavx512vnni.
#if defined(__x86_64__)
#define TENDON_VECTOR_REGISTER "v"
#include "backends/cpu/simd_avx512.h"

namespace tendon::cpu {
namespace {
constexpr SimdKernels kKernels = make_kernels<Avx512Vnni>();
}
const SimdKernels* avx512vnni_kernels() { return &kKernels; }
}  // namespace tendon::cpu
#else
#include "backends/cpu/kernels.h"
const tendon::cpu::SimdKernels* tendon::cpu::avx512vnni_kernels() { return nullptr; }
#endif
