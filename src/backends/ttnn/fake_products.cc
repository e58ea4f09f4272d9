// Products for the fake device: linear and attention.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/ttnn/fake_ops.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

// Four floats, which every 64-bit machine adds and multiplies at once.
using Lanes = float __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
constexpr int64_t kPanel = 2 * kLanes;  // columns that one kernel call makes
constexpr int64_t kPanels = 8;          // packed at a time: 128 KB, which stay in the L2 cache
constexpr int64_t kDepth = 512;         // of k packed at a time; 4 rows of a stay in the L1 cache
constexpr int64_t kSmall = 1 << 19;     // products with fewer multiplications stay on one thread
constexpr int64_t kQueries = 64;        // rows of q whose scores are held at once

Lanes load(const float* from) {
  Lanes v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// to[Rows, 8] += a[Rows, depth] panel[depth, 8]: 64 FLOPs for 32 bytes of panel with four rows,
// bound by the arithmetic.
template <int Rows>
void multiply_panel(const float* a, int64_t a_stride, const float* panel, int64_t depth, float* to,
                    int64_t to_stride) {
  Lanes low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) {
    low[r] = load(to + r * to_stride);
    high[r] = load(to + r * to_stride + kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Lanes b_low = load(panel + k * kPanel), b_high = load(panel + k * kPanel + kLanes);
    for (int r = 0; r < Rows; ++r) {
      const float x = a[r * a_stride + k];
      low[r] += b_low * x;
      high[r] += b_high * x;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    std::memcpy(to + r * to_stride, &low[r], sizeof(Lanes));
    std::memcpy(to + r * to_stride + kLanes, &high[r], sizeof(Lanes));
  }
}

// Rows [k, k + depth) of columns [column, column + count) of b, panel by panel; columns beyond
// become zero.
void pack_panels(const MatrixView& b, int64_t k, int64_t depth, int64_t column, int64_t count,
                 float* to) {
  for (int64_t first = 0; first < count; first += kPanel, to += depth * kPanel) {
    const int64_t width = std::min(kPanel, count - first);
    for (int64_t i = 0; i < depth; ++i) {
      const float* from = b.at + (k + i) * b.row_stride + (column + first) * b.column_stride;
      for (int64_t c = 0; c < kPanel; ++c)
        to[i * kPanel + c] = c < width ? from[c * b.column_stride] : 0.0f;
    }
  }
}

}  // namespace

void multiply_columns(const MatrixView& a, const MatrixView& b, int64_t first, int64_t last,
                      float* to, int64_t to_stride) {
  constexpr int64_t kWidth = kPanels * kPanel;
  std::vector<float> panels(static_cast<size_t>(kDepth * kWidth));
  std::vector<float> sums(static_cast<size_t>(a.rows * kWidth));  // [a.rows, 64]
  for (int64_t column = first; column < last; column += kWidth) {
    const int64_t width = std::min(kWidth, last - column);
    std::ranges::fill(sums, 0.0f);
    for (int64_t k = 0; k < b.rows; k += kDepth) {
      const int64_t depth = std::min(kDepth, b.rows - k);
      pack_panels(b, k, depth, column, width, panels.data());
      for (int64_t r = 0; r < a.rows; r += 4)
        for (int64_t c = 0; c < width; c += kPanel) {
          const float* rows = a.at + r * a.row_stride + k;
          const float* panel = panels.data() + c * depth;
          float* sum = sums.data() + r * kWidth + c;
          switch (a.rows - r) {
            case 1: multiply_panel<1>(rows, a.row_stride, panel, depth, sum, kWidth); break;
            case 2: multiply_panel<2>(rows, a.row_stride, panel, depth, sum, kWidth); break;
            case 3: multiply_panel<3>(rows, a.row_stride, panel, depth, sum, kWidth); break;
            default: multiply_panel<4>(rows, a.row_stride, panel, depth, sum, kWidth);
          }
        }
    }
    for (int64_t r = 0; r < a.rows; ++r)
      std::copy_n(sums.data() + r * kWidth, width, to + r * to_stride + column);
  }
}

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.0f + std::exp(-x));
    case Activation::none: break;
  }
  return x;
}

std::vector<float> linear(const Request& request, std::span<const Operand> inputs, int threads) {
  const Operand &x = inputs[0], &w = inputs[1], &bias = inputs[2];
  const Dims& d = x.spec.dims;
  const int64_t rows = d[0] * d[1] * d[2], k = d[3], n = w.spec.dims[3];
  const MatrixView a{x.values.data(), rows, k, k}, b{w.values.data(), k, n, n};
  std::vector<float> y(static_cast<size_t>(rows * n));  // [rows, n]
  const int64_t panels = (n + kPanel - 1) / kPanel;
  parallel_for(panels, rows * k * n < kSmall ? 1 : threads, [&](int64_t first, int64_t last) {
    first *= kPanel;
    last = std::min(last * kPanel, n);
    multiply_columns(a, b, first, last, y.data(), n);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = first; c < last; ++c) {
        float& value = y[static_cast<size_t>(r * n + c)];
        if (!bias.values.empty()) value += bias.values[static_cast<size_t>(c)];
        value = activate(request.activation, value);
      }
  });
  return y;
}

namespace {

// In place: softmax(scores * scale + mask), row by row. `mask` may be null.
void softmax_rows(float* scores, int64_t rows, int64_t n, float scale, const float* mask) {
  for (int64_t r = 0; r < rows; ++r, scores += n) {
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t c = 0; c < n; ++c) {
      scores[c] = scores[c] * scale + (mask ? mask[r * n + c] : 0.0f);
      top = std::max(top, scores[c]);
    }
    float sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += scores[c] = std::exp(scores[c] - top);
    for (int64_t c = 0; c < n; ++c) scores[c] /= sum;
  }
}

}  // namespace

std::vector<float> attention(const Request& request, std::span<const Operand> inputs, int threads) {
  const Operand &q = inputs[0], &k = inputs[1], &v = inputs[2], &mask = inputs[3];
  const int64_t batches = q.spec.dims[0], heads = q.spec.dims[1], m = q.spec.dims[2],
                d = q.spec.dims[3];
  const int64_t groups = k.spec.dims[1], n = k.spec.dims[2];
  const int64_t blocks = (m + kQueries - 1) / kQueries;  // of queries, per head
  std::vector<float> y(q.values.size());                 // [batches, heads, m, d]
  const int64_t tasks = batches * heads * blocks;
  const bool small = batches * heads * m * n * d < kSmall;
  parallel_for(tasks, small ? 1 : threads, [&](int64_t first, int64_t last) {
    std::vector<float> scores(static_cast<size_t>(kQueries * n));
    for (int64_t task = first; task < last; ++task) {
      const int64_t head = task / blocks, row = task % blocks * kQueries;  // of all batches
      const int64_t rows = std::min(kQueries, m - row), batch = head / heads;
      const int64_t group = batch * groups + head % heads / (heads / groups);
      const int64_t mask_batch = mask.spec.dims[0] == 1 ? 0 : batch;
      const float* visible =
          mask.values.empty() ? nullptr : mask.values.data() + (mask_batch * m + row) * n;
      const int64_t at = (head * m + row) * d;
      multiply_columns({q.values.data() + at, rows, d, d},
                       {k.values.data() + group * n * d, d, n, 1, d}, 0, n, scores.data(), n);
      softmax_rows(scores.data(), rows, n, request.scalar, visible);
      multiply_columns({scores.data(), rows, n, n}, {v.values.data() + group * n * d, n, d, d}, 0,
                       d, y.data() + at, d);
    }
  });
  return y;
}

}  // namespace tendon::tt
