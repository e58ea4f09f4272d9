// The cuda backend: products by cuBLASLt, the other ops by kernels of our own, and the three bodies
// of a call as CUDA graphs. Unproven: it has run on a model of CUDA (tests/cuda/on_host), not on a
// GPU.
#pragma once

#include <memory>
#include <string>

#include "ops/kernels.h"

namespace tendon {

// Operands of the large products; sums and everything else are f32. TF32 is never used.
enum class CudaPrecision : uint8_t { f32, bf16 };

struct CudaOptions {
  CudaPrecision precision = CudaPrecision::bf16;
  int device = 0;            // as nvidia-smi counts them
  bool graphs = true;        // record calls that are made again, and replay them
  std::string blas_library;  // cuBLASLt; empty: what the loader finds
};

// Throws Error(Fault::backend), saying what was found, without a GPU, a driver or cuBLASLt.
std::unique_ptr<Kernels> make_cuda_backend(const CudaOptions& options = {});

}  // namespace tendon
