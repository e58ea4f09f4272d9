#include "backends/ttnn/fake_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "tensor/bf16.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

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

// Copies a box: row (i0, i1, i2) of `box` goes from from[from_at + ...] to to[to_at + ...], each
// with its own dims.
struct Corner {
  const Dims& dims;
  Dims at{};
  int64_t row(int64_t i0, int64_t i1, int64_t i2) const {
    return (((at[0] + i0) * dims[1] + at[1] + i1) * dims[2] + at[2] + i2) * dims[3] + at[3];
  }
};
void copy_box(const Dims& box, const float* from, const Corner& source, float* to,
              const Corner& target) {
  for (int64_t i0 = 0; i0 < box[0]; ++i0)
    for (int64_t i1 = 0; i1 < box[1]; ++i1)
      for (int64_t i2 = 0; i2 < box[2]; ++i2)
        std::copy_n(from + source.row(i0, i1, i2), box[3], to + target.row(i0, i1, i2));
}

std::vector<float> concat(const Request& request, std::span<const Operand> inputs,
                          const Spec& out) {
  std::vector<float> y = empty_values(out);
  Dims at{};
  for (const Operand& x : inputs) {
    copy_box(x.spec.dims, x.values.data(), {x.spec.dims}, y.data(), {out.dims, at});
    at[static_cast<size_t>(request.axis)] += x.spec.dims[static_cast<size_t>(request.axis)];
  }
  return y;
}

std::vector<float> pad(const Operand& x, const Spec& out) {
  std::vector<float> y = empty_values(out);
  copy_box(x.spec.dims, x.values.data(), {x.spec.dims}, y.data(), {out.dims});
  return y;
}

std::vector<float> slice(const Request& request, const Operand& x, const Spec& out) {
  std::vector<float> y = empty_values(out);
  copy_box(out.dims, x.values.data(), {x.spec.dims, request.begin}, y.data(), {out.dims});
  return y;
}

// (x - mean) / sqrt(var + epsilon) * scale + shift, or without mean and shift. Sums in f64: the
// device's f32 sums run in another order, and neither order is right.
std::vector<float> norm(const Request& request, std::span<const Operand> inputs, int threads) {
  const Operand &x = inputs[0], &scale = inputs[1];
  const bool centered = request.call == Call::layer_norm;
  const std::span<const float> shift = centered ? inputs[2].values : std::span<const float>{};
  const int64_t n = x.spec.dims[3];
  std::vector<float> y(x.values.size());
  for_each(std::ssize(x.values) / n, n, threads, [&](int64_t r) {
    const float* from = x.values.data() + r * n;
    float* to = y.data() + r * n;
    double sum = 0, squares = 0;
    for (int64_t c = 0; c < n; ++c) sum += from[c];
    const double mean = centered ? sum / static_cast<double>(n) : 0;
    for (int64_t c = 0; c < n; ++c) squares += (from[c] - mean) * (from[c] - mean);
    const double variance = squares / static_cast<double>(n);
    const auto inverse = static_cast<float>(1 / std::sqrt(variance + request.scalar));
    for (int64_t c = 0; c < n; ++c) {
      to[c] = (from[c] - static_cast<float>(mean)) * inverse;
      to[c] *= scale.values[static_cast<size_t>(c)];
      if (!shift.empty()) to[c] += shift[static_cast<size_t>(c)];
    }
  });
  return y;
}

// x cos + (-x[d/2:], x[:d/2]) sin. The library fills the last tile: rows beyond m become zero.
std::vector<float> rotary(std::span<const Operand> inputs, const Spec& out, int threads) {
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

// Columns [heads d | kv d | kv d] of x to three tensors [b, heads or kv, m, d].
std::vector<std::vector<float>> create_heads(const Operand& x, std::span<const Spec> outputs) {
  std::vector<std::vector<float>> all;
  int64_t column = 0;
  for (const Spec& out : outputs) {
    std::vector<float> y = empty_values(out);
    const auto [batches, heads, m, d] = out.dims;
    for (int64_t b = 0; b < batches; ++b)
      for (int64_t h = 0; h < heads; ++h)
        copy_box({1, 1, m, d}, x.values.data(), {x.spec.dims, {b, 0, 0, column + h * d}}, y.data(),
                 {out.dims, {b, h, 0, 0}});
    all.push_back(std::move(y));
    column += heads * d;
  }
  return all;
}

std::vector<float> concat_heads(const Operand& x, const Spec& out) {
  std::vector<float> y = empty_values(out);
  const auto [batches, heads, m, d] = x.spec.dims;
  for (int64_t b = 0; b < batches; ++b)
    for (int64_t h = 0; h < heads; ++h)
      copy_box({1, 1, m, d}, x.values.data(), {x.spec.dims, {b, h, 0, 0}}, y.data(),
               {out.dims, {b, 0, 0, h * d}});
  return y;
}

std::vector<float> embedding(std::span<const Operand> inputs) {
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

// x op y, where y's axes of length 1 are repeated.
std::vector<float> binary(Call call, std::span<const Operand> inputs, int threads) {
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

// The library sends a scalar in the format of the tiles it meets: -0.1 becomes -0.10009766.
std::vector<float> multiply_scalar(const Request& request, const Operand& x) {
  const float scalar = from_bf16(to_bf16(request.scalar));
  std::vector<float> y(x.values.begin(), x.values.end());
  for (float& value : y) value *= scalar;
  return y;
}

// To 7 significant bits, ties away from zero: the packer's first step with a 32-bit accumulator.
uint32_t seven_bits(uint32_t u) { return (u + 0x10000u) & ~0x1FFFFu; }

// One block of at most 16 values that share an exponent. Infinities do not occur on the device.
void round_block(std::span<float> block, bool from_f32) {
  uint32_t top = 0;
  for (float& value : block) {
    const auto u = std::bit_cast<uint32_t>(from_f32 ? value : from_bf16(to_bf16(value)));
    value = std::bit_cast<float>(from_f32 ? seven_bits(u) : u);
    top = std::max(top, (std::bit_cast<uint32_t>(value) >> 23) & 0xFFu);
  }
  const double unit = std::ldexp(1.0, static_cast<int>(top) - 133);
  for (float& value : block) {
    const auto u = std::bit_cast<uint32_t>(value);
    const uint32_t e = (u >> 23) & 0xFFu, shift = std::min(17 + top - e, 40u);
    const uint64_t m = e == 0 ? 0 : (u & 0x7FFFFFu) | 0x800000u;
    const uint64_t magnitude = std::min<uint64_t>((m + (uint64_t{1} << (shift - 1))) >> shift, 127);
    const auto rounded = static_cast<float>(unit * static_cast<double>(magnitude));
    value = magnitude != 0 && u >> 31 != 0 ? -rounded : rounded;
  }
}

// To what the device's packer stores. bf16: nearest even. bfp8: blocks of 16 along the row, ties
// away from zero; out of a 32-bit accumulator each value is first rounded to 7 significant bits on
// its own, then again to the block's exponent.
void round_to_format(const Spec& spec, bool from_f32, std::span<float> values, int threads) {
  constexpr int64_t kBlock = 16;
  const int64_t n = spec.dims[3];
  for_each(std::ssize(values) / n, n, threads, [&](int64_t r) {
    const std::span row = values.subspan(static_cast<size_t>(r * n), static_cast<size_t>(n));
    if (spec.format == Format::bf16)
      for (float& value : row) value = from_bf16(to_bf16(value));
    else
      for (int64_t c = 0; c < n; c += kBlock)
        round_block(
            row.subspan(static_cast<size_t>(c), static_cast<size_t>(std::min(kBlock, n - c))),
            from_f32);
  });
}

bool from_f32_accumulator(const Request& request) {
  switch (request.call) {
    case Call::linear:
    case Call::layer_norm:
    case Call::rms_norm:
    case Call::attention:
    case Call::rotary: return request.compute.f32_accumulate;
    default: return false;
  }
}

std::vector<float> compute_one(const Request& request, std::span<const Operand> inputs,
                               const Spec& out, int threads) {
  const Operand& x = inputs[0];
  switch (request.call) {
    case Call::slice: return slice(request, x, out);
    case Call::pad: return pad(x, out);
    case Call::concat: return concat(request, inputs, out);
    case Call::linear: return linear(request, inputs, threads);
    case Call::layer_norm:
    case Call::rms_norm: return norm(request, inputs, threads);
    case Call::attention: return attention(request, inputs, threads);
    case Call::rotary: return rotary(inputs, out, threads);
    case Call::concat_heads: return concat_heads(x, out);
    case Call::embedding: return embedding(inputs);
    case Call::add:
    case Call::multiply: return binary(request.call, inputs, threads);
    case Call::multiply_scalar: return multiply_scalar(request, x);
    default: return {x.values.begin(), x.values.end()};  // reshape, typecast
  }
}

}  // namespace

std::vector<std::vector<float>> compute(const Request& request, std::span<const Operand> inputs,
                                        std::span<const Spec> outputs, int threads) {
  std::vector<std::vector<float>> all;
  if (request.call == Call::create_qkv_heads)
    all = create_heads(inputs[0], outputs);
  else
    all.push_back(compute_one(request, inputs, outputs[0], threads));
  for (size_t i = 0; i < all.size(); ++i)
    round_to_format(outputs[i], from_f32_accumulator(request), all[i], threads);
  return all;
}

}  // namespace tendon::tt
