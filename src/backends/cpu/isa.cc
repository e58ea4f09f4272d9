#include "backends/cpu/isa.h"

#include <fmt/ranges.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "tensor/check.h"

namespace tendon::cpu {
namespace {

struct Known {
  const SimdKernels* kernels;
  bool here;
};

#if defined(__x86_64__)
// Not by name: clang 14 does not know this one. Intel's manual, CPUID leaf 7, subleaf 1.
bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1U << 4) != 0;
}

// The matrix registers, 8 KiB per thread, are given to a process that asks the kernel for them
// (Linux 5.16, Documentation/arch/x86/xstate.rst).
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBf16 = 1U << 22, kTile = 1U << 24, kInt8 = 1U << 25,
                     kAll = kBf16 | kTile | kInt8;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAll) != kAll) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<Known> known() {
  std::vector<Known> all = {{plain_kernels(), true}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  all.push_back({avx2_kernels(), avx2});
  all.push_back({avxvnni_kernels(), avx2 && has_avxvnni()});
  all.push_back({avx512_kernels(), avx512});
  all.push_back({avx512vnni_kernels(), vnni});
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  all.push_back({avx512bf16_kernels(), bf16});
  all.push_back({amx_kernels(), bf16 && has_amx()});
#endif
  return all;
}

}  // namespace

std::vector<const SimdKernels*> available_isas() {
  std::vector<const SimdKernels*> here;
  for (const Known& isa : known())
    if (isa.here) here.push_back(isa.kernels);
  return here;
}

const SimdKernels& isa_named(const std::string& name) {
  std::vector<std::string_view> names;
  bool exists = false;
  for (const auto& [isa, here] : known()) {
    if (here && name == isa->name) return *isa;
    if (here) names.emplace_back(isa->name);
    exists |= name == isa->name;
  }
  fail(exists ? Fault::backend : Fault::usage, "--isa {}: {}; this machine has {}", name,
       exists ? "the machine lacks it" : "unknown instruction set", fmt::join(names, ", "));
}

}  // namespace tendon::cpu
