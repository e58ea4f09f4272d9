// Any machine: four lanes in the compiler's own vectors.
#if defined(__x86_64__)
#define TENDON_VECTOR_REGISTER "x"
#elif defined(__aarch64__)
#define TENDON_VECTOR_REGISTER "w"
#else
#define TENDON_VECTOR_REGISTER "m"
#endif
#include "backends/cpu/make_kernels.h"

namespace tendon::cpu {
namespace {

struct Plain {
  using V = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  using Halves = uint16_t __attribute__((vector_size(8)));
  using Bytes = uint8_t __attribute__((vector_size(4)));
  static constexpr const char* kName = "plain";
  static constexpr const char* kInt8Method = "32-bit products, exact";
  static constexpr int kLanes = 4, kRows = 4, kVectors = 2, kPeakChains = 10;
  static constexpr int tile_rows(Form) { return kRows; }
  static constexpr int tile_words(Form form) { return form == Form::f32 ? 1 : 2; }

  TENDON_INLINE V fma(V a, V b, V c) { return a * b + c; }
  TENDON_INLINE Halves halves(V x) {
    return __builtin_convertvector(round_bf16<Plain>(x) >> 16, Halves);
  }
  TENDON_INLINE V broadcast(const uint32_t* word) {
    float x;
    std::memcpy(&x, word, sizeof(x));
    return x - V{};
  }
  template <Form kForm>
  TENDON_INLINE V widened(V b, int part) {
    const I w = (I)b;
    if constexpr (kForm == Form::bf16) return part == 0 ? (V)(w << 16) : (V)(w & -0x10000);
    const I low = part == 0 ? (w << 24) >> 24 : (w << 16) >> 24;  // bytes 0 and 2, or 1 and 3
    const I high = part == 0 ? (w << 8) >> 24 : w >> 24;
    return (V)((low & 0xFFFF) | (high << 16));
  }
  template <Form kForm>
  TENDON_INLINE V mac(V acc, V x, V b) {
    if constexpr (kForm != Form::int8) return x * b + acc;
    const I i = (I)x, j = (I)b;
    return (V)((I)acc + ((i << 16) >> 16) * ((j << 16) >> 16) + (i >> 16) * (j >> 16));
  }
};

}  // namespace

const SimdKernels* plain_kernels() { return &kKernels<Plain>; }

}  // namespace tendon::cpu
