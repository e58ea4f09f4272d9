// Plain kernels: every sum in float, in an order that depends on shapes alone. Unless a kernel says
// otherwise, a thread makes one value of the result, neighbours in a row are neighbours in a warp,
// and the memory's bandwidth is the bound: bytes are those moved per value of the result.
#include "backends/cuda/kernels.h"

namespace tendon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kNormEps = 1e-6f;

template <class... Parameters>
cudaError_t launch(cudaStream_t stream, dim3 blocks, int threads, void (*kernel)(Parameters...),
                   Parameters... arguments) {
  if (blocks.x == 0 || blocks.y == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

dim3 blocks_for(int64_t count) {
  return dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads));
}

__device__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

__device__ float to_float(float x) { return x; }
__device__ float to_float(Bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

// The upper half of a float, rounded to nearest, ties to even: the sum carries into bit 16 where
// the lower half is above 0x8000, or is 0x8000 below an odd bit. A NaN stays one. 6 bytes.
__global__ void narrow_kernel(const float* from, Bf16* to, int64_t count) {
  const int64_t i = thread_index();
  if (i >= count) return;
  const unsigned bits = __float_as_uint(from[i]);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const unsigned rounded = nan ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1u);
  to[i].bits = static_cast<uint16_t>(rounded >> 16);
}

// arXiv:1606.08415 in its tanh form, as the reference backend has it.
__device__ float gelu_tanh(float x) {
  constexpr float kRootTwoOverPi = 0.79788456f;
  return 0.5f * x * (1.f + tanhf(kRootTwoOverPi * (x + 0.044715f * x * x * x)));
}

// By the number of an Activation.
__device__ float activate(int activation, float x) {
  if (activation == 1) return gelu_tanh(x);
  if (activation == 2) return x / (1.f + expf(-x));
  return x;
}

// 8 bytes, 12 with a residual; bias and gate are rows that stay in the cache.
__global__ void finish_kernel(ProductEpilogue f) {
  const int64_t i = thread_index();
  if (i >= f.rows * f.columns) return;
  const int64_t r = i / f.columns, c = i % f.columns;
  float value = activate(f.activation, f.y[i] + (f.bias ? f.bias[c] : 0.f));
  if (f.gate) value *= f.gate[c];
  if (f.residual) value += f.residual[r % f.residual_rows * f.columns + c];
  f.y[i] = value;
}

// 12 bytes.
__global__ void gate_up_kernel(const float* both, float* y, int64_t rows, int64_t columns) {
  const int64_t i = thread_index();
  if (i >= rows * columns) return;
  const float* row = both + i / columns * 2 * columns + i % columns;
  y[i] = gelu_tanh(row[0]) * row[columns];
}

// Of all threads of the block, in each of them: a tree within each warp, then the warps in order.
__device__ float block_sum(float x) {
  __shared__ float parts[kThreads / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  __syncthreads();  // whoever still reads the last sum
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (const float part : parts) sum += part;
  return sum;
}

// y = (x - mean) / sqrt(mean of squares + eps) * scale + shift, the mean being 0 with rms. A block
// per row: its threads go through it up to three times, the later ones through the cache, so 8
// bytes per value. Squares of differences, as the reference has them: nothing cancels.
__global__ void norm_kernel(Norm n) {
  const float* x = n.x + blockIdx.x * n.columns;
  float* y = n.y + blockIdx.x * n.columns;
  const float count = static_cast<float>(n.columns);
  float mean = 0;
  if (!n.rms) {
    float sum = 0;
    for (int64_t c = threadIdx.x; c < n.columns; c += kThreads) sum += x[c];
    mean = block_sum(sum) / count;
  }
  float squares = 0;
  for (int64_t c = threadIdx.x; c < n.columns; c += kThreads)
    squares += (x[c] - mean) * (x[c] - mean);
  const float factor = 1.f / sqrtf(block_sum(squares) / count + kNormEps);
  for (int64_t c = threadIdx.x; c < n.columns; c += kThreads)
    y[c] = (x[c] - mean) * factor * n.scale[c] + (n.shift ? n.shift[c] : 0.f);
}

// all [rows, (query + 2 kv) width] into q, k and v; columns j and j + width/2 of a head turn by
// position * 10000^(-2j/width). 8 bytes per value. A thread per row and column of a head; it goes
// through the heads, so that every angle is computed once for q and k. Angles in double: a position
// times a frequency has few bits left in float.
__global__ void split_heads_kernel(Split s) {
  const int64_t i = thread_index();
  if (i >= s.rows * s.width) return;
  const int64_t row = i / s.width, j = i % s.width, half = s.width / 2;
  const bool rotate = s.first_position >= 0;
  float cosine = 1, sine = 0;
  int64_t partner = 0;
  if (rotate) {
    const double exponent = -2.0 * static_cast<double>(j % half) / static_cast<double>(s.width);
    const double angle = static_cast<double>(s.first_position + row) * pow(10000.0, exponent);
    cosine = static_cast<float>(cos(angle));
    sine = static_cast<float>(j < half ? -sin(angle) : sin(angle));
    partner = j < half ? half : -half;
  }
  const float* from = s.all + row * (s.query + 2 * s.kv) * s.width + j;
  const auto turned = [&](int64_t head) {
    const float* at = from + head * s.width;
    return rotate ? at[0] * cosine + at[partner] * sine : at[0];
  };
  for (int64_t h = 0; h < s.query; ++h) s.q[(row * s.query + h) * s.width + j] = turned(h);
  for (int64_t h = 0; h < s.kv; ++h) {
    const int64_t to = (row * s.kv + h) * s.width + j;
    s.k[to] = turned(s.query + h);
    s.v[to] = from[(s.query + s.kv + h) * s.width];
  }
}

// Attention: a block takes kLanes rows of one head through the keys, kLanes at a time; kLanes lanes
// share a row and keep kColumns of its sums each. The softmax is the running one
// (arXiv:1805.02867): sums are scaled down whenever a larger score comes. 4 * keys * width FLOPs
// per row and head; every multiply-add reads shared memory, whose bandwidth is the bound. K and V
// are read once per block.

template <int kLanes>
__device__ float lanes_max(float x) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

template <int kLanes>
__device__ float lanes_sum(float x) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// One row of `width` columns into shared memory by its lanes; zeros where there is none.
template <int kLanes>
__device__ void load_row(float* to, const float* from, int64_t width, int lane) {
  for (int64_t c = lane; c < width; c += kLanes) to[c] = from ? from[c] : 0.f;
}

template <int kLanes, int kColumns>
__global__ void attention_kernel(Attention a) {
  // An odd number of words: no two lanes meet in a bank.
  __shared__ float queries[kLanes][kLanes * kColumns + 1], tile[kLanes][kLanes * kColumns + 1];
  const int r = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t tiles = (a.rows + kLanes - 1) / kLanes;
  const int64_t segment = blockIdx.x / tiles, row = blockIdx.x % tiles * kLanes + r;
  const int64_t head = blockIdx.y, shared_head = head / (a.query / a.kv);
  const bool real = row < a.rows;
  const int64_t keys = a.each_sees ? a.keys : a.all_see;
  const int64_t sees = !real ? 0 : a.each_sees ? a.each_sees[row] : a.all_see;
  const int64_t at = ((segment * a.rows + row) * a.query + head) * a.width;
  const auto key_row = [&](const float* of, int64_t key) {
    return key < keys ? of + ((segment * a.keys + key) * a.kv + shared_head) * a.width : nullptr;
  };
  load_row<kLanes>(queries[r], real ? a.q + at : nullptr, a.width, lane);
  const float scale = 1.f / sqrtf(static_cast<float>(a.width));
  float sums[kColumns] = {}, largest = -INFINITY, total = 0;
  for (int64_t first = 0; first < keys; first += kLanes) {
    __syncthreads();  // the values of the last tile are no longer read
    load_row<kLanes>(tile[r], key_row(a.k, first + r), a.width, lane);
    __syncthreads();
    float score = 0;
    for (int64_t c = 0; c < a.width; ++c) score += queries[r][c] * tile[lane][c];
    score = first + lane < sees ? score * scale : -INFINITY;
    const float largest_now = fmaxf(largest, lanes_max<kLanes>(score));
    const bool any = largest_now > -INFINITY;  // else the difference below is not a number
    const float shrink = any ? expf(largest - largest_now) : 1.f;
    const float weight = any ? expf(score - largest_now) : 0.f;
    largest = largest_now;
    total = total * shrink + lanes_sum<kLanes>(weight);
    __syncthreads();
    load_row<kLanes>(tile[r], key_row(a.v, first + r), a.width, lane);
    __syncthreads();
    for (float& sum : sums) sum *= shrink;
    for (int key = 0; key < kLanes; ++key) {
      const float share = __shfl_sync(~0u, weight, key, kLanes);
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
        if (lane + i * kLanes < a.width) sums[i] += share * tile[key][lane + i * kLanes];
    }
  }
  if (!real) return;
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    if (lane + i * kLanes < a.width) a.out[at + lane + i * kLanes] = sums[i] / total;
}

template <int kLanes, int kColumns>
cudaError_t launch_attention(cudaStream_t stream, const Attention& a) {
  const dim3 blocks(static_cast<unsigned>((a.rows + kLanes - 1) / kLanes * a.segments),
                    static_cast<unsigned>(a.query));
  return launch(stream, blocks, kLanes * kLanes, attention_kernel<kLanes, kColumns>, a);
}

// Two tiles of 8 rows of 640 floats are 41 kB; of 16 rows they would exceed the 48 kB that a block
// may have without asking.
constexpr int kWideLanes = 8, kWideColumns = kHeadWidthMax / kWideLanes;

// 8 bytes, 6 of a bf16 table. Rows are far apart, but each is read in one piece.
template <class Value>
__global__ void embed_kernel(Embed e) {
  const int64_t i = thread_index();
  if (i >= e.rows * e.columns) return;
  const auto* row = static_cast<const Value*>(e.table) + e.ids[i / e.columns] * e.columns;
  e.y[i] = e.scale * to_float(row[i % e.columns]);
}

__global__ void add_scaled_kernel(AddScaled a) {
  const int64_t i = thread_index();
  if (i < a.count) a.out[i] = a.x[i] + a.scale * a.y[i];
}

__global__ void multiply_kernel(const float* x, const float* y, float* out, int64_t count) {
  const int64_t i = thread_index();
  if (i < count) out[i] = x[i] * y[i];
}

}  // namespace

cudaError_t prepare_kernels() {
  cudaFuncAttributes loaded{};
  const auto load = [&](auto* kernel) { return cudaFuncGetAttributes(&loaded, kernel); };
  for (const cudaError_t e :
       {load(narrow_kernel), load(finish_kernel), load(gate_up_kernel), load(norm_kernel),
        load(split_heads_kernel), load(attention_kernel<16, 16>),
        load(attention_kernel<kWideLanes, kWideColumns>), load(embed_kernel<float>),
        load(embed_kernel<Bf16>), load(add_scaled_kernel), load(multiply_kernel)})
    if (e != cudaSuccess) return e;
  return cudaSuccess;
}

cudaError_t narrow(cudaStream_t stream, const float* from, Bf16* to, int64_t count) {
  return launch(stream, blocks_for(count), kThreads, narrow_kernel, from, to, count);
}

cudaError_t finish(cudaStream_t stream, const ProductEpilogue& f) {
  return launch(stream, blocks_for(f.rows * f.columns), kThreads, finish_kernel, f);
}

cudaError_t gate_up(cudaStream_t stream, const float* both, float* y, int64_t rows,
                    int64_t columns) {
  return launch(stream, blocks_for(rows * columns), kThreads, gate_up_kernel, both, y, rows,
                columns);
}

cudaError_t norm(cudaStream_t stream, const Norm& n) {
  return launch(stream, dim3(static_cast<unsigned>(n.rows)), kThreads, norm_kernel, n);
}

cudaError_t split_heads(cudaStream_t stream, const Split& s) {
  return launch(stream, blocks_for(s.rows * s.width), kThreads, split_heads_kernel, s);
}

cudaError_t attention(cudaStream_t stream, const Attention& a) {
  return a.width <= 256 ? launch_attention<16, 16>(stream, a)
                        : launch_attention<kWideLanes, kWideColumns>(stream, a);
}

cudaError_t embed(cudaStream_t stream, const Embed& e) {
  return launch(stream, blocks_for(e.rows * e.columns), kThreads,
                e.bf16 ? embed_kernel<Bf16> : embed_kernel<float>, e);
}

cudaError_t add_scaled(cudaStream_t stream, const AddScaled& a) {
  return launch(stream, blocks_for(a.count), kThreads, add_scaled_kernel, a);
}

cudaError_t multiply(cudaStream_t stream, const float* x, const float* y, float* out,
                     int64_t count) {
  return launch(stream, blocks_for(count), kThreads, multiply_kernel, x, y, out, count);
}

}  // namespace tendon::cuda
