// The kernels of our own, each a launch on a stream. Matrices are row-major float unless they say
// otherwise; what they compute is in ops/kernels.h. Every launch returns cudaSuccess or why not.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tendon::cuda {

struct Bf16 {  // as stored: the upper half of a float
  uint16_t bits;
};

// Columns of a head that attention() has room for.
constexpr int64_t kHeadWidthMax = 640;

// Loads what a capture must not load. Once per device.
cudaError_t prepare_kernels();

// to[i] = from[i], rounded to nearest even
cudaError_t narrow(cudaStream_t stream, const float* from, Bf16* to, int64_t count);

// y[r] = residual[r mod residual_rows] + gate * activation(y[r] + bias), in place; null: left out.
struct ProductEpilogue {
  float* y = nullptr;
  const float *bias = nullptr, *gate = nullptr, *residual = nullptr;
  int64_t rows = 0, columns = 0, residual_rows = 1;
  int activation = 0;  // of ops/arguments.h
};
cudaError_t finish(cudaStream_t stream, const ProductEpilogue& f);

// y[r, c] = gelu_tanh(both[r, c]) * both[r, columns + c]
cudaError_t gate_up(cudaStream_t stream, const float* both, float* y, int64_t rows,
                    int64_t columns);

// shift may be null with rms.
struct Norm {
  const float *x = nullptr, *scale = nullptr, *shift = nullptr;
  float* y = nullptr;
  int64_t rows = 0, columns = 0;
  bool rms = false;
};
cudaError_t norm(cudaStream_t stream, const Norm& n);

// [rows, q | k | v] into three, with rotary embedding on q and k unless first_position is negative.
struct Split {
  const float* all = nullptr;
  float *q = nullptr, *k = nullptr, *v = nullptr;
  int64_t rows = 0, query = 0, kv = 0, width = 0, first_position = -1;
};
cudaError_t split_heads(cudaStream_t stream, const Split& s);

// rows and keys: of one segment. A row sees the first `all_see` keys, or each_sees[r] of them.
struct Attention {
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  float* out = nullptr;
  int64_t segments = 1, rows = 0, keys = 0, query = 1, kv = 1, width = 0;
  int32_t all_see = 0;
  const int32_t* each_sees = nullptr;
};
cudaError_t attention(cudaStream_t stream, const Attention& a);

// y[r] = scale * table[ids[r]]; the table is bf16 or float.
struct Embed {
  const void* table = nullptr;
  bool bf16 = false;
  const int32_t* ids = nullptr;
  float scale = 1;
  float* y = nullptr;
  int64_t rows = 0, columns = 0;
};
cudaError_t embed(cudaStream_t stream, const Embed& e);

// out = x + scale * y
struct AddScaled {
  const float *x = nullptr, *y = nullptr;
  float scale = 1;
  float* out = nullptr;
  int64_t count = 0;
};
cudaError_t add_scaled(cudaStream_t stream, const AddScaled& a);
cudaError_t multiply(cudaStream_t stream, const float* x, const float* y, float* out,
                     int64_t count);

}  // namespace tendon::cuda
