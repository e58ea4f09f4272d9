// The reference backend, in a header: a test changes one op of it by overriding that alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "backends/reference/reference.h"
#include "ops/host_kernels.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::reference {

constexpr float kNormEps = 1e-6f;

struct ReferenceBuffer final : HostBuffer {
  explicit ReferenceBuffer(int64_t count) : kept(static_cast<size_t>(count)) {
    values = kept.data();
  }
  std::vector<float> kept;
};

// The checkpoint's own bytes, whatever their type; rows become float when they are used.
struct ReferenceWeight final : PreparedWeight {
  explicit ReferenceWeight(const WeightParts& the_parts) : parts(the_parts) {}
  int64_t bytes() const override {
    int64_t sum = 0;
    for (const HostTensor& m : parts.matrices) sum += std::ssize(m.bytes);
    return sum;
  }

  const WeightParts parts;
};

inline const WeightParts& weight(const Weight& w) {
  return static_cast<const ReferenceWeight&>(*w.native).parts;
}

// Sum of x[i] · w[i] in 16 interleaved partial sums, added pairwise: short chains keep the rounding
// small, and the order is fixed.
inline float dot(const float* x, const float* w, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * w[i + l];
  for (int64_t l = 0; i < n; ++i, ++l) lanes[l] += x[i] * w[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), arXiv:1606.08415: "gelu_pytorch_tanh", and what JAX
// calls gelu.
inline float gelu_tanh(float x) {
  const float inner = std::sqrt(2.f / std::numbers::pi_v<float>) * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.f + std::tanh(inner));
}

inline float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::silu: return x / (1.f + std::exp(-x));
  }
  fail(Fault::internal, "unknown activation {}", static_cast<int>(activation));
}

class ReferenceKernels : public HostKernels {
 public:
  explicit ReferenceKernels(const ReferenceOptions& options = {})
      : HostKernels({.name = "reference"}),
        threads_(options.threads > 0 ? options.threads : hardware_threads()) {}

  std::shared_ptr<const PreparedWeight> prepare(const WeightParts& parts) override {
    return std::make_shared<ReferenceWeight>(parts);
  }

  // y[m, n] = Σ_k x[m, k] · w[n, k]: 2·M·N·K FLOPs. Four weight rows at a time meet every row of x,
  // so that x is read N/4 times from the cache; columns are shared out over the threads.
  Tensor product(const Tensor& x, const Weight& w) {
    constexpr int64_t kBlock = 4;
    Tensor y = make(x.rows(), w.outputs);
    const int64_t blocks = (w.outputs + kBlock - 1) / kBlock;
    const int threads = x.rows() * w.outputs * w.inputs < (1 << 20) ? 1 : threads_;
    parallel_for(blocks, threads, [&](int64_t first, int64_t last) {
      std::vector<float> columns(static_cast<size_t>(kBlock * w.inputs));
      for (int64_t n = first * kBlock; n < std::min(last * kBlock, w.outputs); n += kBlock) {
        const int64_t width = std::min(kBlock, w.outputs - n);
        for (int64_t j = 0; j < width; ++j)
          weight(w).read_row(n + j, std::span(columns).subspan(static_cast<size_t>(j * w.inputs),
                                                               static_cast<size_t>(w.inputs)));
        for (int64_t m = 0; m < x.rows(); ++m)
          for (int64_t j = 0; j < width; ++j)
            row(y, m)[n + j] = dot(row(x, m), columns.data() + j * w.inputs, w.inputs);
      }
    });
    return y;
  }

  // [rows, inputs] to [rows, outputs]. The gate scales what is added to the residual, not the sum.
  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& e) override {
    Tensor y = product(x, w);
    const float* bias = e.bias ? row(e.bias, 0) : w.has_bias ? weight(w).bias.data() : nullptr;
    const float* gate = e.gate ? row(e.gate, 0) : nullptr;
    for (int64_t r = 0; r < y.rows(); ++r) {
      const float* residual = e.residual ? row(e.residual, r % e.residual.rows()) : nullptr;
      for (int64_t c = 0; c < y.columns(); ++c) {
        float value = activate(e.activation, row(y, r)[c] + (bias ? bias[c] : 0.f));
        if (gate) value *= gate[c];
        row(y, r)[c] = residual ? residual[c] + value : value;
      }
    }
    return y;
  }

  // GeGLU, arXiv:2002.05202, without its last product: the first half of Gemma's MLP.
  Tensor gated_linear(const Tensor& x, const Weight& w) override {
    const Tensor both = product(x, w);  // [rows, gate | up]
    const int64_t width = w.outputs / 2;
    Tensor y = make(x.rows(), width);
    for (int64_t r = 0; r < y.rows(); ++r)
      for (int64_t c = 0; c < width; ++c)
        row(y, r)[c] = gelu_tanh(row(both, r)[c]) * row(both, r)[width + c];
    return y;
  }

  // arXiv:1607.06450. The mean first, then the squares of what is left: the mean of the squares
  // less the square of the mean would cancel in rows far from zero.
  Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    Tensor y = make(x.rows(), x.columns());
    const int64_t n = x.columns();
    for (int64_t r = 0; r < x.rows(); ++r) {
      double sum = 0, squares = 0;
      for (int64_t c = 0; c < n; ++c) sum += row(x, r)[c];
      const double mean = sum / static_cast<double>(n);
      for (int64_t c = 0; c < n; ++c) squares += (row(x, r)[c] - mean) * (row(x, r)[c] - mean);
      const double variance = squares / static_cast<double>(n);
      const float centre = static_cast<float>(mean);
      const float factor = static_cast<float>(1.0 / std::sqrt(variance + double{kNormEps}));
      for (int64_t c = 0; c < n; ++c)
        row(y, r)[c] = (row(x, r)[c] - centre) * factor * row(scale, 0)[c] + row(shift, 0)[c];
    }
    return y;
  }

  // arXiv:1910.07467. Gemma multiplies by 1 + w: `scale` holds the sum already.
  Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    Tensor y = make(x.rows(), x.columns());
    const int64_t n = x.columns();
    for (int64_t r = 0; r < x.rows(); ++r) {
      double squares = 0;
      for (int64_t c = 0; c < n; ++c) squares += double{row(x, r)[c]} * row(x, r)[c];
      const double mean = squares / static_cast<double>(n);
      const float factor = static_cast<float>(1.0 / std::sqrt(mean + double{kNormEps}));
      for (int64_t c = 0; c < n; ++c)
        row(y, r)[c] = row(x, r)[c] * factor * row(scale, 0)[c] + (shift ? row(shift, 0)[c] : 0.f);
    }
    return y;
  }

  // Rotary embedding, arXiv:2104.09864, half-split as Gemma has it: columns j and j + width/2 of a
  // head turn by position · θ^(−2j/width). Angles in double: in float those of position 1000 would
  // be off by 3e-5. One sine and cosine serve all heads of a row.
  static void rotate(Tensor& x, int64_t width, int64_t first_position) {
    const int64_t half = width / 2;
    for (int64_t r = 0; r < x.rows(); ++r)
      for (int64_t j = 0; j < half; ++j) {
        const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(width);
        const double angle = static_cast<double>(first_position + r) * std::pow(10000.0, exponent);
        const float c = static_cast<float>(std::cos(angle)),
                    s = static_cast<float>(std::sin(angle));
        for (float* head = row(x, r); head < row(x, r) + x.columns(); head += width) {
          const float a = head[j], b = head[j + half];
          head[j] = a * c - b * s;
          head[j + half] = b * c + a * s;
        }
      }
  }

  // One weight, [q | k | v, inputs], so that x is gone through once. `query` may be 0: keys and
  // values alone.
  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first_position) override {
    const Tensor all = linear(x, w, {});  // [rows, q | k | v]
    const int64_t q = heads.query * heads.width, kv = heads.kv * heads.width;
    Qkv out{make(x.rows(), q), make(x.rows(), kv), make(x.rows(), kv)};
    for (int64_t r = 0; r < x.rows(); ++r) {
      std::copy_n(row(all, r), q, row(out.q, r));
      std::copy_n(row(all, r) + q, kv, row(out.k, r));
      std::copy_n(row(all, r) + q + kv, kv, row(out.v, r));
    }
    if (first_position) {
      rotate(out.q, heads.width, *first_position);
      rotate(out.k, heads.width, *first_position);
    }
    return out;
  }

  // Query heads that follow each other share a key and value head (arXiv:2305.13245): of 8 on 1,
  // head h reads head h / 8. 4 · keys seen · width FLOPs per row and query head. Rows are shared
  // out over the threads, each with the scores of one row and head.
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible) override {
    Tensor out = make(q.rows(), q.columns());
    const std::span<const int32_t> seen = visible.keys;
    const int64_t segments = visible.segments;
    const int64_t rows = q.rows() / segments, keys = k.rows() / segments;
    const int64_t width = heads.width, share = heads.query / heads.kv;
    const int threads = q.rows() * keys * q.columns() < (1 << 20) ? 1 : threads_;
    parallel_for(q.rows(), threads, [&](int64_t first, int64_t last) {
      std::vector<float> weights(static_cast<size_t>(keys));
      for (int64_t r = first; r < last; ++r)
        for (int64_t h = 0; h < heads.query; ++h) {
          const int64_t key = r / rows * keys, column = h / share * width;
          const int32_t count = seen[seen.size() == 1 ? 0 : static_cast<size_t>(r % rows)];
          attend({row(q, r) + h * width, row(k, key) + column, row(v, key) + column, width,
                  k.columns(), row(out, r) + h * width},
                 std::span(weights).first(static_cast<size_t>(count)));
        }
    });
    return out;
  }

  struct HeadRow {  // of q and of the result; k and v: the first key's, `stride` from key to key
    const float *q, *k, *v;
    int64_t width, stride;
    float* out;
  };
  // Σ_j softmax(q·k_j / √width)_j v_j over weights.size() keys. The largest score is subtracted, so
  // that no exponential overflows; the sum divides the result instead of every weight.
  static void attend(const HeadRow& h, std::span<float> weights) {
    const auto& [q, k, v, width, stride, out] = h;
    const float scale = 1.f / std::sqrt(static_cast<float>(width));
    const int64_t seen = std::ssize(weights);
    for (int64_t j = 0; j < seen; ++j)
      weights[static_cast<size_t>(j)] = scale * dot(q, k + j * stride, width);
    const float largest = *std::ranges::max_element(weights);
    double sum = 0;
    for (float& w : weights) sum += w = std::exp(w - largest);
    std::fill_n(out, width, 0.f);
    for (int64_t j = 0; j < seen; ++j)
      for (int64_t c = 0; c < width; ++c)
        out[c] += weights[static_cast<size_t>(j)] * v[j * stride + c];
    for (int64_t c = 0; c < width; ++c) out[c] *= static_cast<float>(1.0 / sum);
  }

  // Rows of a table [vocabulary, width]; Gemma scales its own by √width.
  Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale) override {
    Tensor y = make(std::ssize(ids), table.inputs);
    for (int64_t r = 0; r < y.rows(); ++r) {
      const std::span<float> to(row(y, r), static_cast<size_t>(table.inputs));
      weight(table).read_row(ids[static_cast<size_t>(r)], to);
      for (float& value : to) value *= scale;
    }
    return y;
  }

 private:
  Tensor make(int64_t rows, int64_t columns) override {
    return {Shape{rows, columns}, new ReferenceBuffer(rows * columns)};
  }

  int threads_;
};

}  // namespace tendon::reference
