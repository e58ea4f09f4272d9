// The cpu backend: packed weights, vector instructions chosen at run time, own threads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/kernels.h"
#include "ops/kernels.h"

namespace tendon {

// What the large products are computed in. Sums, residual stream, norms and softmax are always f32,
// as are the small products around the transformer (WeightKind::small).
// bf16: both operands rounded, attention too. int8: weights per output, activations per row;
// attention as in bf16.
using Precision = cpu::Form;
std::string_view name(Precision precision);
Precision precision_named(const std::string& name);  // Fault::usage with the nearest name

struct CpuOptions {
  int threads = 0;  // 0: one per core; never changes a result
  Precision precision = Precision::bf16;
  std::string isa;  // "": the fastest, by measurement; see cpu_isas()
};

// Throws Error(Fault::backend) when the machine lacks `isa`, Error(Fault::usage) when it is
// unknown.
std::unique_ptr<Kernels> make_cpu_backend(const CpuOptions& options = {});

std::vector<std::string> cpu_isas();  // those of this machine, slowest first

// GFLOP/s that `threads` threads reach with the multiply-add of `precision` alone.
double cpu_peak(const CpuOptions& options);
// GB/s that they read from memory.
double cpu_bandwidth(int threads);
// "avx512vnni, int8 products (vpdpbusd, exact)": what make_cpu_backend would use.
std::string describe_cpu(const CpuOptions& options);
// Measured GFLOP/s (int8: GOP/s) of one thread by instruction set: "plain 9, avx512 160 (taken)".
std::string compare_cpu_isas(Precision precision);

}  // namespace tendon
