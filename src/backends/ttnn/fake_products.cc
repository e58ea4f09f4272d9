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
constexpr int64_t kRows = 4;            // and rows
constexpr int64_t kSmall = 1 << 19;     // products with fewer multiplications stay on one thread
constexpr int64_t kQueries = 64;        // rows of q whose scores are held at once

Lanes load(const float* from) {
  Lanes v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// A matrix in memory: element (r, c) is at[r * row_stride + c * column_stride].
struct MatrixView {
  const float* at = nullptr;
  int64_t rows = 0, columns = 0;
  int64_t row_stride = 0, column_stride = 1;
};

// to[Rows, 8] = a[Rows, depth] panel[depth, 8]: 64 FLOPs for 32 bytes of panel with four rows,
// bound by the arithmetic.
template <int Rows>
void multiply_panel(const float* a, int64_t a_stride, const float* panel, int64_t depth,
                    float* to) {
  Lanes low[Rows] = {}, high[Rows] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Lanes b_low = load(panel + k * kPanel), b_high = load(panel + k * kPanel + kLanes);
    for (int r = 0; r < Rows; ++r) {
      const float x = a[r * a_stride + k];
      low[r] += b_low * x;
      high[r] += b_high * x;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    std::memcpy(to + r * kPanel, &low[r], sizeof(Lanes));
    std::memcpy(to + r * kPanel + kLanes, &high[r], sizeof(Lanes));
  }
}

// Columns [first, last) of a b, each element summed in order of k, to `to` with rows of
// b.columns values. a's column stride is 1.
void multiply_columns(const MatrixView& a, const MatrixView& b, int64_t first, int64_t last,
                      float* to) {
  std::vector<float> panel(static_cast<size_t>(b.rows * kPanel));  // [b.rows, 8]
  float sums[kRows * kPanel];
  for (int64_t column = first; column < last; column += kPanel) {
    const int64_t width = std::min(kPanel, last - column);
    for (int64_t k = 0; k < b.rows; ++k)
      for (int64_t c = 0; c < width; ++c)
        panel[static_cast<size_t>(k * kPanel + c)] =
            b.at[k * b.row_stride + (column + c) * b.column_stride];
    for (int64_t r = 0; r < a.rows;) {
      const float* rows = a.at + r * a.row_stride;
      const int64_t made = a.rows - r < kRows ? 1 : kRows;
      if (made == 1)
        multiply_panel<1>(rows, a.row_stride, panel.data(), b.rows, sums);
      else
        multiply_panel<kRows>(rows, a.row_stride, panel.data(), b.rows, sums);
      for (int64_t i = 0; i < made; ++i, ++r)
        std::copy_n(sums + i * kPanel, width, to + r * b.columns + column);
    }
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

std::vector<float> linear(const Request& request, std::span<const Operand> inputs, int threads) {
  const Operand &x = inputs[0], &w = inputs[1], &bias = inputs[2];
  const Dims& d = x.spec.dims;
  const int64_t rows = d[0] * d[1] * d[2], k = d[3], n = w.spec.dims[3];
  const MatrixView a{x.values.data(), rows, k, k}, b{w.values.data(), k, n, n};
  std::vector<float> y(static_cast<size_t>(rows * n));  // [rows, n]
  const int64_t panels = divide_up(n, kPanel);
  parallel_for(panels, rows * k * n < kSmall ? 1 : threads, [&](int64_t first, int64_t last) {
    first *= kPanel;
    last = std::min(last * kPanel, n);
    multiply_columns(a, b, first, last, y.data());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = first; c < last; ++c) {
        float& value = y[static_cast<size_t>(r * n + c)];
        if (!bias.values.empty()) value += bias.values[static_cast<size_t>(c)];
        value = activate(request.activation, value);
      }
  });
  return y;
}

std::vector<float> attention(const Request& request, std::span<const Operand> inputs, int threads) {
  const Operand &q = inputs[0], &k = inputs[1], &v = inputs[2], &mask = inputs[3];
  const int64_t batches = q.spec.dims[0], heads = q.spec.dims[1], m = q.spec.dims[2],
                d = q.spec.dims[3];
  const int64_t groups = k.spec.dims[1], n = k.spec.dims[2];
  const int64_t blocks = divide_up(m, kQueries);  // of queries, per head
  std::vector<float> y(q.values.size());          // [batches, heads, m, d]
  const int64_t tasks = batches * heads * blocks;
  const bool small = batches * heads * m * n * d < kSmall;
  parallel_for(tasks, small ? 1 : threads, [&](int64_t first, int64_t last) {
    std::vector<float> scores(static_cast<size_t>(kQueries * n));
    for (int64_t task = first; task < last; ++task) {
      const int64_t head = task / blocks, row = task % blocks * kQueries;  // of all batches
      const int64_t rows = std::min(kQueries, m - row);
      const int64_t group = head / (heads / groups);  // likewise
      const float* hidden = mask.values.empty() ? nullptr : mask.values.data() + row * n;
      const int64_t at = (head * m + row) * d;
      multiply_columns({q.values.data() + at, rows, d, d},
                       {k.values.data() + group * n * d, d, n, 1, d}, 0, n, scores.data());
      softmax_rows(scores.data(), rows, n, request.scalar, hidden);
      multiply_columns({scores.data(), rows, n, n}, {v.values.data() + group * n * d, n, d, d}, 0,
                       d, y.data() + at);
    }
  });
  return y;
}

}  // namespace tendon::tt
