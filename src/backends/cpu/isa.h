// Which instruction sets this build and this machine have.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backends/cpu/kernels.h"

namespace tendon::cpu {

// Slowest first: "plain", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx".
// Decided by the CPU's feature bits and what the kernel allows.
std::vector<const SimdKernels*> available_isas();

// Throws Error(Fault::usage) for an unknown name and Error(Fault::backend) for one that the machine
// lacks; both list what there is.
const SimdKernels& isa_named(const std::string& name);

// One thread's product of a tile with panels that lie in a level-2 cache, measured for a
// millisecond, and whether a small product is what the plain kernels give.
struct IsaSpeed {
  const SimdKernels* isa;
  double gflops;
  bool right;
};
bool agrees_with_plain(const SimdKernels& isa, Form form);
// Of every instruction set of this machine; measured once in a process, in less than 30 ms.
const std::vector<IsaSpeed>& isa_speeds(Form form);

// The fastest that is right. Those within a tenth of it count as equally fast and go in a fixed
// order.
const SimdKernels& fastest(const std::vector<IsaSpeed>& speeds);

// Multiply-adds of one thread, rounded down to at least 1.
int64_t macs_per_ns(const SimdKernels& isa, Form form);

// By name, or the fastest for "".
const SimdKernels& isa_for(const std::string& name, Form form);

}  // namespace tendon::cpu
