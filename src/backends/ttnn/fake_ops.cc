#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/ttnn/fake_device.h"
#include "tensor/bf16.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

using Operands = std::span<const Operand>;

// Values that one thread computes before another is started.
constexpr int64_t kFew = 1 << 16;

std::vector<float> empty_values(const Spec& spec) {
  return std::vector<float>(static_cast<size_t>(count(spec.dims)));
}

// body(i) for i in [0, count), several threads when there is enough to do.
template <class Body>
void for_each(int64_t count, int64_t values_each, int threads, const Body& body) {
  parallel_for(count, count * values_each < kFew ? 1 : threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i);
  });
}

// f of every value.
template <class F>
std::vector<float> mapped(std::span<const float> x, const F& f) {
  std::vector<float> y(x.size());
  std::ranges::transform(x, y.begin(), f);
  return y;
}

// ---- Moving ----

// `dims` values of an input from corner `from` on go to an output at corner `to`.
struct Box {
  size_t input = 0, output = 0;
  Dims from{}, to{}, dims{};
};

// All of a call that only moves values.
std::vector<Box> boxes(const Request& r, Operands inputs, std::span<const Spec> outputs) {
  const Dims& x = inputs[0].spec.dims;
  if (r.call == Call::slice) return {{.from = r.begin, .dims = outputs[0].dims}};
  if (r.call == Call::pad) return {{.dims = x}};
  std::vector<Box> all;
  if (r.call == Call::permute) {
    for (int64_t a = 0; a < x[0]; ++a)
      for (int64_t b = 0; b < x[1]; ++b)
        for (int64_t c = 0; c < x[2]; ++c)
          all.push_back({0, 0, {a, b, c, 0}, {a, c, b, 0}, {1, 1, 1, x[3]}});
  } else if (r.call == Call::concat) {
    Dims at{};
    for (size_t i = 0; i < inputs.size(); ++i) {
      all.push_back({.input = i, .to = at, .dims = inputs[i].spec.dims});
      at[static_cast<size_t>(r.axis)] += inputs[i].spec.dims[static_cast<size_t>(r.axis)];
    }
  } else if (r.call == Call::create_qkv_heads) {  // [heads d | kv d | kv d]
    int64_t column = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const auto [batches, heads, m, d] = outputs[i].dims;
      for (int64_t h = 0; h < heads; ++h, column += d)
        for (int64_t b = 0; b < batches; ++b)
          all.push_back({0, i, {b, 0, 0, column}, {b, h, 0, 0}, {1, 1, m, d}});
    }
  } else if (r.call == Call::concat_heads) {
    for (int64_t b = 0; b < x[0]; ++b)
      for (int64_t h = 0; h < x[1]; ++h)
        all.push_back({0, 0, {b, h, 0, 0}, {b, 0, 0, h * x[3]}, {1, 1, x[2], x[3]}});
  }
  return all;
}

std::vector<std::vector<float>> copy_boxes(std::span<const Box> boxes, Operands inputs,
                                           std::span<const Spec> outputs) {
  std::vector<std::vector<float>> all;
  for (const Spec& y : outputs) all.push_back(empty_values(y));
  const auto place = [](const Dims& dims, const Dims& at, int64_t i0, int64_t i1, int64_t i2) {
    return (((at[0] + i0) * dims[1] + at[1] + i1) * dims[2] + at[2] + i2) * dims[3] + at[3];
  };
  for (const auto& [input, output, from, to, box] : boxes) {
    const Operand& x = inputs[input];
    for (int64_t i0 = 0; i0 < box[0]; ++i0)
      for (int64_t i1 = 0; i1 < box[1]; ++i1)
        for (int64_t i2 = 0; i2 < box[2]; ++i2)
          std::copy_n(x.values.begin() + place(x.spec.dims, from, i0, i1, i2), box[3],
                      all[output].begin() + place(outputs[output].dims, to, i0, i1, i2));
  }
  return all;
}

std::vector<float> embedding(Operands inputs) {
  const Operand &ids = inputs[0], &table = inputs[1];
  const int64_t rows = table.spec.dims[2], k = table.spec.dims[3];
  std::vector<float> y;
  for (const float id : ids.values) {
    const auto row = static_cast<int64_t>(id);
    ensure(row < rows, Fault::internal, "[embedding] got id {}, expected less than the table's {}",
           row, rows);
    const auto from = table.values.subspan(static_cast<size_t>(row * k), static_cast<size_t>(k));
    y.insert(y.end(), from.begin(), from.end());
  }
  return y;
}

// What a multiplier of low fidelity reads of a value: so many significant bits of its two factors.
constexpr int kLongCut = 7, kShortCut = 5;
float cut(float value, int bits) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & (~0u << (24 - bits)));
}

// ---- Row by row ----

// (x - mean) / sqrt(var + epsilon) * scale + shift, or without mean and shift. Sums in f64: the
// device's f32 sums run in another order, and neither order is right. Of the fidelities only lofi
// is modelled: docs/ttnn.md says what hifi2 does.
std::vector<float> norm(const Request& request, Operands inputs, int threads) {
  const Operand &x = inputs[0], &scale = inputs[1];
  const bool centered = request.call == Call::layer_norm;
  const std::span<const float> shift = centered ? inputs[2].values : std::span<const float>{};
  const int64_t n = x.spec.dims[3];
  const bool lofi = request.compute.fidelity == Fidelity::lofi;
  const auto times = [lofi](float a, float b) {
    return lofi ? cut(a, kShortCut) * cut(b, kLongCut) : a * b;
  };
  std::vector<float> y(x.values.size());
  for_each(std::ssize(x.values) / n, n, threads, [&](int64_t r) {
    const float* from = x.values.data() + r * n;
    float* to = y.data() + r * n;
    double sum = 0, squares = 0;
    for (int64_t c = 0; c < n; ++c) sum += from[c];
    const double mean = centered ? sum / static_cast<double>(n) : 0;
    for (int64_t c = 0; c < n; ++c)
      if (lofi) {
        const auto x0 = static_cast<float>(from[c] - mean);
        squares += times(x0, x0);
      } else {
        squares += (from[c] - mean) * (from[c] - mean);
      }
    const double variance = squares / static_cast<double>(n);
    const auto inverse = static_cast<float>(1 / std::sqrt(variance + request.scalar));
    for (int64_t c = 0; c < n; ++c) {
      to[c] = times(from[c] - static_cast<float>(mean), inverse);
      to[c] = times(to[c], scale.values[static_cast<size_t>(c)]);
      if (!shift.empty()) to[c] += shift[static_cast<size_t>(c)];
    }
  });
  return y;
}

// x cos + (-x[d/2:], x[:d/2]) sin. The library fills the last tile: rows beyond m become zero.
std::vector<float> rotary(Operands inputs, const Spec& out, int threads) {
  const Operand& x = inputs[0];
  const auto [batches, heads, m, d] = x.spec.dims;
  const int64_t rows = out.dims[2];
  std::vector<float> y = empty_values(out);
  for_each(heads * m, d, threads, [&, m = m, d = d](int64_t r) {
    const float* from = x.values.data() + r * d;
    const float* cos = inputs[1].values.data() + r % m * d;
    const float* sin = inputs[2].values.data() + r % m * d;
    float* to = y.data() + (r / m * rows + r % m) * d;
    for (int64_t c = 0; c < d; ++c)
      to[c] = from[c] * cos[c] + (c < d / 2 ? -from[c + d / 2] : from[c - d / 2]) * sin[c];
  });
  return y;
}

// x op y, where y's axes of length 1 are repeated.
std::vector<float> binary(Call call, Operands inputs, int threads) {
  const Operand &x = inputs[0], &y = inputs[1];
  const Dims &d = x.spec.dims, &e = y.spec.dims;
  std::vector<float> z(x.values.size());
  for_each(d[0] * d[1] * d[2], d[3], threads, [&](int64_t r) {
    const int64_t i0 = r / d[2] / d[1], i1 = r / d[2] % d[1], i2 = r % d[2];
    const int64_t row =
        ((e[0] == 1 ? 0 : i0) * e[1] + (e[1] == 1 ? 0 : i1)) * e[2] + (e[2] == 1 ? 0 : i2);
    const float *a = x.values.data() + r * d[3], *b = y.values.data() + row * e[3];
    float* to = z.data() + r * d[3];
    for (int64_t c = 0; c < d[3]; ++c) {
      const float other = b[e[3] == 1 ? 0 : c];
      to[c] = call == Call::add ? a[c] + other : a[c] * other;
    }
  });
  return z;
}

// ---- Products ----

// Four floats, which every 64-bit machine adds and multiplies at once.
using Lanes = float __attribute__((vector_size(16)));
constexpr int64_t kPanel = 8;        // columns that are summed at once
constexpr int64_t kRows = 4;         // and rows
constexpr int64_t kSmall = 1 << 19;  // products with fewer multiplications stay on one thread
constexpr int64_t kQueries = 64;     // rows of q whose scores are held at once

// y [rows, columns] = a [rows, depth] b, where element (k, c) of b is at b[k * down + c * across].
struct Product {
  int64_t rows, depth, columns;
  const float *a, *b;
  int64_t down, across;
  float* y;
};

// Columns [first, last) of y, each element summed in order of k: 64 FLOPs for 32 bytes of panel,
// bound by the arithmetic. Beyond the last row it is done again.
void multiply(const Product& p, int64_t first, int64_t last) {
  std::vector<Lanes> made(static_cast<size_t>(2 * p.depth));
  Lanes* panel = made.data();  // [depth, 8]
  for (int64_t column = first; column < last; column += kPanel) {
    const int64_t width = std::min(kPanel, last - column);
    for (int64_t k = 0; k < p.depth; ++k)
      for (int64_t c = 0; c < width; ++c)
        panel[2 * k + c / 4][c % 4] = p.b[k * p.down + (column + c) * p.across];
    for (int64_t r = 0; r < p.rows; r += kRows) {
      const float* rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) rows[i] = p.a + std::min(r + i, p.rows - 1) * p.depth;
      Lanes sums[kRows][2] = {};
      for (int64_t k = 0; k < p.depth; ++k)
        for (int64_t i = 0; i < kRows; ++i) {
          sums[i][0] += panel[2 * k] * rows[i][k];
          sums[i][1] += panel[2 * k + 1] * rows[i][k];
        }
      for (int64_t i = 0; i < std::min(kRows, p.rows - r); ++i)
        std::memcpy(p.y + (r + i) * p.columns + column, sums[i],
                    static_cast<size_t>(width) * sizeof(float));
    }
  }
}

// The operands of a product, cut where its fidelity is low. Of hifi3 nothing is cut: what it leaves
// out lies below bf16.
struct Factors {
  Factors(std::span<const float> x, std::span<const float> y, Fidelity fidelity)
      : left(x), right(y) {
    if (fidelity <= Fidelity::hifi2) left = own_left_ = all_cut(x, kLongCut);
    if (fidelity == Fidelity::lofi) right = own_right_ = all_cut(y, kShortCut);
  }
  Factors(const Factors&) = delete;
  std::span<const float> left, right;

 private:
  static std::vector<float> all_cut(std::span<const float> values, int bits) {
    return mapped(values, [bits](float value) { return cut(value, bits); });
  }
  std::vector<float> own_left_, own_right_;
};

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.0f + std::exp(-x));
    case Activation::none: break;
  }
  return x;
}

std::vector<float> linear(const Request& request, Operands inputs, int threads) {
  const Operand &x = inputs[0], &w = inputs[1], &bias = inputs[2];
  const int64_t k = x.spec.dims[3], n = w.spec.dims[3], rows = std::ssize(x.values) / k;
  std::vector<float> y(static_cast<size_t>(rows * n));  // [rows, n]
  const Factors read(x.values, w.values, request.compute.fidelity);
  const Product product{rows, k, n, read.left.data(), read.right.data(), n, 1, y.data()};
  const int64_t panels = divide_up(n, kPanel);
  parallel_for(panels, rows * k * n < kSmall ? 1 : threads, [&](int64_t first, int64_t last) {
    first *= kPanel;
    last = std::min(last * kPanel, n);
    multiply(product, first, last);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = first; c < last; ++c) {
        float& value = y[static_cast<size_t>(r * n + c)];
        if (!bias.values.empty()) value += bias.values[static_cast<size_t>(c)];
        value = activate(request.activation, value);
      }
  });
  return y;
}

// In place: softmax(scores * scale + mask), row by row. `mask` may be null.
void softmax_rows(std::span<float> scores, int64_t n, float scale, const float* mask) {
  for (float* row = scores.data(); row != scores.data() + scores.size(); row += n) {
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t c = 0; c < n; ++c) {
      row[c] = row[c] * scale + (mask ? mask[row - scores.data() + c] : 0.0f);
      top = std::max(top, row[c]);
    }
    float sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += row[c] = std::exp(row[c] - top);
    for (int64_t c = 0; c < n; ++c) row[c] /= sum;
  }
}

std::vector<float> attention(const Request& request, Operands inputs, int threads) {
  const Operand &q = inputs[0], &k = inputs[1], &v = inputs[2], &mask = inputs[3];
  const auto [batches, heads, m, d] = q.spec.dims;
  const int64_t groups = k.spec.dims[1], n = k.spec.dims[2];
  const int64_t blocks = divide_up(m, kQueries);  // of queries, per head
  std::vector<float> y(q.values.size());          // [batches, heads, m, d]
  const bool small = batches * heads * m * n * d < kSmall;
  const Fidelity fidelity = request.compute.fidelity;
  const Factors scored(q.values, k.values, fidelity), summed({}, v.values, fidelity);
  const auto attend = [&, heads = heads, m = m, d = d](int64_t first, int64_t last) {
    std::vector<float> scores(static_cast<size_t>(kQueries * n));
    for (int64_t task = first; task < last; ++task) {
      const int64_t head = task / blocks, row = task % blocks * kQueries;  // of all batches
      const int64_t rows = std::min(kQueries, m - row);
      const int64_t group = head / (heads / groups);  // likewise
      const int64_t at = (head * m + row) * d, keys = group * n * d;
      multiply(
          {rows, d, n, scored.left.data() + at, scored.right.data() + keys, 1, d, scores.data()}, 0,
          n);
      softmax_rows(std::span(scores).first(static_cast<size_t>(rows * n)), n, request.scalar,
                   mask.values.empty() ? nullptr : mask.values.data() + row * n);
      const Factors weights(scores, {}, fidelity);
      multiply({rows, n, d, weights.left.data(), summed.right.data() + keys, d, 1, y.data() + at},
               0, d);
    }
  };
  parallel_for(batches * heads * blocks, small ? 1 : threads, attend);
  return y;
}

// ---- Rounding ----

// Where values that are to be stored come from: the host, or a register of the device with 16 or
// 32 bits per value.
enum class From : uint8_t { host, bf16, f32 };

From accumulator(const Request& request) {
  switch (request.call) {
    case Call::linear:
    case Call::layer_norm:
    case Call::rms_norm:
    case Call::attention:
    case Call::rotary: return request.compute.f32_accumulate ? From::f32 : From::bf16;
    default: return From::bf16;
  }
}

// At most 16 values that share an exponent. The device's packer rounds ties away from zero, and
// what comes out of a 32-bit register first to 7 significant bits on its own; the host rounds to
// nearest even. Infinities do not occur.
void round_block(std::span<float> block, From from) {
  uint32_t top = 0;
  for (float& value : block) {
    if (from == From::bf16) value = from_bf16(to_bf16(value));
    if (from == From::f32)
      value = std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x10000u) & ~0x1FFFFu);
    top = std::max(top, (std::bit_cast<uint32_t>(value) >> 23) & 0xFFu);
  }
  const double unit = std::ldexp(1.0, static_cast<int>(top) - 133);
  for (float& value : block) {
    const auto u = std::bit_cast<uint32_t>(value);
    const uint32_t e = (u >> 23) & 0xFFu, shift = std::min(17 + top - e, 40u);
    const uint64_t m = e == 0 ? 0 : (u & 0x7FFFFFu) | 0x800000u;
    const uint64_t half = uint64_t{1} << (shift - 1);
    const bool down = from == From::host && ((m >> shift) & 1) == 0;  // ties
    const uint64_t magnitude = std::min<uint64_t>((m + half - (down ? 1 : 0)) >> shift, 127);
    const auto rounded = static_cast<float>(unit * static_cast<double>(magnitude));
    value = magnitude != 0 && u >> 31 != 0 ? -rounded : rounded;
  }
}

void round_to_format(const Spec& spec, From from, std::span<float> values, int threads) {
  if (spec.format != Format::bf16 && spec.format != Format::bfp8) return;
  const int64_t n = spec.dims[3];
  for_each(std::ssize(values) / n, n, threads, [&](int64_t r) {
    const std::span row = values.subspan(static_cast<size_t>(r * n), static_cast<size_t>(n));
    if (spec.format == Format::bf16)
      for (float& value : row) value = from_bf16(to_bf16(value));
    else
      for (int64_t c = 0; c < n; c += kBlock)
        round_block(
            row.subspan(static_cast<size_t>(c), static_cast<size_t>(std::min(kBlock, n - c))),
            from);
  });
}

std::vector<float> compute_one(const Request& request, Operands inputs, const Spec& out,
                               int threads) {
  const Operand& x = inputs[0];
  switch (request.call) {
    case Call::linear: return linear(request, inputs, threads);
    case Call::layer_norm:
    case Call::rms_norm: return norm(request, inputs, threads);
    case Call::attention: return attention(request, inputs, threads);
    case Call::rotary: return rotary(inputs, out, threads);
    case Call::embedding: return embedding(inputs);
    case Call::add:
    case Call::multiply: return binary(request.call, inputs, threads);
    case Call::multiply_scalar: {
      // The library sends a scalar in the format of the tiles it meets: -0.1 becomes -0.10009766.
      const float scalar = from_bf16(to_bf16(request.scalar));
      return mapped(x.values, [scalar](float value) { return value * scalar; });
    }
    case Call::sin: return mapped(x.values, [](float value) { return std::sin(value); });
    case Call::cos: return mapped(x.values, [](float value) { return std::cos(value); });
    default: return {x.values.begin(), x.values.end()};  // reshape, typecast
  }
}

}  // namespace

std::vector<std::vector<float>> compute(const Request& request, std::span<const Operand> inputs,
                                        std::span<const Spec> outputs, int threads) {
  std::vector<std::vector<float>> all;
  if (const std::vector<Box> moved = boxes(request, inputs, outputs); !moved.empty())
    all = copy_boxes(moved, inputs, outputs);
  else
    all.push_back(compute_one(request, inputs, outputs[0], threads));
  for (size_t i = 0; i < all.size(); ++i)
    round_to_format(outputs[i], accumulator(request), all[i], threads);
  return all;
}

std::vector<float> rounded_for_upload(const Spec& spec, std::span<const float> values,
                                      int threads) {
  std::vector<float> rounded(values.begin(), values.end());
  round_to_format(spec, From::host, rounded, threads);
  return rounded;
}

}  // namespace tendon::tt
