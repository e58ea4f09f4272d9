// Which instruction sets this build and this machine have.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backends/cpu/kernels.h"

namespace tendon::cpu {

// Slowest first: "plain", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16". Decided by the
// CPU's feature bits alone.
std::vector<const IsaKernels*> available_isas();

// By name, or the last available one for "". Throws Error(Fault::usage) for an unknown name and
// Error(Fault::backend) for one that the machine lacks; both list what there is.
const IsaKernels& isa_named(const std::string& name);

}  // namespace tendon::cpu
