// Compiled with AVX-512, -mavx512vnni and -mavx512bf16.
#if defined(__x86_64__)
#define TENDON_VECTOR_REGISTER "v"
#include "backends/cpu/simd_avx512.h"

namespace tendon::cpu {
namespace {
constexpr SimdKernels kKernels = make_kernels<Avx512Bf16>();
}
const SimdKernels* avx512bf16_kernels() { return &kKernels; }
}  // namespace tendon::cpu
#else
#include "backends/cpu/kernels.h"
const tendon::cpu::SimdKernels* tendon::cpu::avx512bf16_kernels() { return nullptr; }
#endif
