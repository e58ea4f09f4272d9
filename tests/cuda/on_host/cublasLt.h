// The part of cuBLASLt that the cuda backend uses, under the same names (see cuda_runtime.h), with
// column-major products as its documentation defines them: D = epilogue(alpha op(A) B + beta C).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime.h"

// The backend looks its functions up by name in the library that is made of cuda_on_host.cc.
#define CUBLAS_ON_HOST extern "C" inline __attribute__((used))

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS,
  CUBLAS_STATUS_ALLOC_FAILED = 3,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasLtEpilogue_t {
  CUBLASLT_EPILOGUE_DEFAULT = 1,
  CUBLASLT_EPILOGUE_BIAS = 4,
  CUBLASLT_EPILOGUE_GELU = 32,
  CUBLASLT_EPILOGUE_GELU_BIAS = 36
};
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA = 3,
  CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8
};
enum cublasLtMatmulPreferenceAttributes_t { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1 };

struct cublasLtSession {};
struct cublasLtMatmulPreferenceOpaque_t {};
struct cublasLtMatmulDescOpaque_t {
  int32_t transpose_a = CUBLAS_OP_N;
  int32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type;
  int64_t rows, columns, leading;

  float at(const void* data, int64_t r, int64_t c) const {
    const int64_t i = c * leading + r;
    if (type == CUDA_R_32F) return static_cast<const float*>(data)[i];
    return __uint_as_float(unsigned{static_cast<const uint16_t*>(data)[i]} << 16);
  }
};

using cublasLtHandle_t = cublasLtSession*;
using cublasLtMatmulDesc_t = cublasLtMatmulDescOpaque_t*;
using cublasLtMatrixLayout_t = cublasLtMatrixLayoutOpaque_t*;
using cublasLtMatmulPreference_t = cublasLtMatmulPreferenceOpaque_t*;
struct cublasLtMatmulAlgo_t {
  uint64_t data[8];
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  size_t workspaceSize;
  cublasStatus_t state;
};

namespace cuda_on_host {

// Which epilogues it has kernels for; a test may take some away.
struct BlasMachine {
  bool bias = true, gelu = true;
  bool refuses = true;  // without a kernel; else it finds none
};
BlasMachine& blas_machine();

inline bool possible(const cublasLtMatmulDescOpaque_t& desc) {
  const BlasMachine& m = blas_machine();
  const bool bias =
      desc.epilogue == CUBLASLT_EPILOGUE_BIAS || desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
  const bool gelu =
      desc.epilogue == CUBLASLT_EPILOGUE_GELU || desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
  return (m.bias || !bias) && (m.gelu || !gelu);
}

inline float finished(const cublasLtMatmulDescOpaque_t& desc, float x, int64_t row) {
  if (desc.epilogue & 4) x += desc.bias[row];
  if (!(desc.epilogue & 32)) return x;
  return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
}

}  // namespace cuda_on_host

CUBLAS_ON_HOST cublasStatus_t cublasLtCreate(cublasLtHandle_t* session) {
  *session = new cublasLtSession;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtDestroy(cublasLtHandle_t session) {
  delete session;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_NOT_SUPPORTED";
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc,
                                                       cublasComputeType_t, cudaDataType_t) {
  *desc = new cublasLtMatmulDescOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                                             cublasLtMatmulDescAttributes_t which,
                                                             const void* value, size_t bytes) {
  const bool pointer = which == CUBLASLT_MATMUL_DESC_BIAS_POINTER;
  if (bytes != (pointer ? sizeof(void*) : sizeof(int32_t))) return CUBLAS_STATUS_INVALID_VALUE;
  switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA: std::memcpy(&desc->transpose_a, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: std::memcpy(&desc->epilogue, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: std::memcpy(&desc->bias, value, bytes); break;
  }
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout,
                                                         cudaDataType_t type, uint64_t rows,
                                                         uint64_t columns, int64_t leading) {
  if (leading < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = new cublasLtMatrixLayoutOpaque_t{type, static_cast<int64_t>(rows),
                                             static_cast<int64_t>(columns), leading};
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t
cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t
cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void*, size_t bytes) {
  return bytes == sizeof(size_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
CUBLAS_ON_HOST cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
    cublasLtMatmulHeuristicResult_t* results, int* found) {
  *found = cuda_on_host::possible(*desc) ? 1 : 0;
  *results = {};
  // The library says so in either way.
  const bool says_so = *found == 0 && cuda_on_host::blas_machine().refuses;
  return says_so ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

CUBLAS_ON_HOST cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                             const void* alpha, const void* a,
                                             cublasLtMatrixLayout_t a_layout, const void* b,
                                             cublasLtMatrixLayout_t b_layout, const void* beta,
                                             const void* c, cublasLtMatrixLayout_t c_layout,
                                             void* d, cublasLtMatrixLayout_t d_layout,
                                             const cublasLtMatmulAlgo_t*, void*, size_t,
                                             cudaStream_t stream) {
  const bool ta = desc->transpose_a == CUBLAS_OP_T;
  const cublasLtMatrixLayoutOpaque_t la = *a_layout, lb = *b_layout, lc = *c_layout, ld = *d_layout;
  const int64_t inner = ta ? la.rows : la.columns;
  if ((ta ? la.columns : la.rows) != ld.rows || lb.columns != ld.columns || lb.rows != inner ||
      la.type != lb.type || ld.type != CUDA_R_32F)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!cuda_on_host::possible(*desc)) return CUBLAS_STATUS_NOT_SUPPORTED;
  // Scalars and attributes count at the time of the call, matrices when the work is done.
  const float one = *static_cast<const float*>(alpha), add = *static_cast<const float*>(beta);
  const cudaError_t e = stream->run([=, how = *desc] {
    for (int64_t column = 0; column < ld.columns; ++column)
      for (int64_t row = 0; row < ld.rows; ++row) {
        float lanes[16] = {};  // short chains, as in a tile of a GPU
        for (int64_t i = 0; i < inner; ++i)
          lanes[i % 16] += (ta ? la.at(a, i, row) : la.at(a, row, i)) * lb.at(b, i, column);
        float sum = 0;
        for (const float lane : lanes) sum += lane;
        sum = one * sum + (add != 0 ? add * lc.at(c, row, column) : 0);
        static_cast<float*>(d)[column * ld.leading + row] = cuda_on_host::finished(how, sum, row);
      }
  });
  return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
