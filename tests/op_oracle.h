// Every op in float64, straight from its formula: what all backends are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "op_table.h"

namespace tendon {

// "rms_norm_with_shift": names of tests may only hold letters, digits and underscores.
inline std::string test_name(const OpCase& c) {
  std::string text = std::string(name(c.op)) + "_" + std::string(c.why);
  std::erase(text, ',');
  std::ranges::replace(text, ' ', '_');
  return text;
}

struct Oracle {
  const OpCase& c;
  const OpInputs& in;

  static double at(const std::vector<float>& v, int64_t i) { return v[static_cast<size_t>(i)]; }

  static double activate(Activation a, double x) {
    if (a == Activation::silu) return x / (1 + std::exp(-x));
    if (a == Activation::none) return x;
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  }

  double product(int64_t r, int64_t n) const {
    double sum = 0;
    for (int64_t k = 0; k < c.inputs; ++k)
      sum += at(in.x, r * c.inputs + k) * at(in.weight, n * c.inputs + k);
    return sum + (c.bias ? at(in.bias, n) : 0);
  }

  double linear(int64_t r, int64_t n) const {
    double v = activate(c.activation, product(r, n));
    if (c.gate) v *= at(in.gate, n);
    const int64_t rows = std::ssize(in.residual) / c.outputs;
    return c.residual ? v + at(in.residual, r % rows * c.outputs + n) : v;
  }

  double gated(int64_t r, int64_t n) const {
    return activate(Activation::gelu_tanh, product(r, n)) * product(r, c.outputs + n);
  }

  double norm(int64_t r, int64_t n) const {
    const bool layer = c.op == Op::layer_norm;
    double mean = 0, squares = 0;
    for (int64_t k = 0; layer && k < c.inputs; ++k) mean += at(in.x, r * c.inputs + k);
    mean /= static_cast<double>(c.inputs);
    for (int64_t k = 0; k < c.inputs; ++k)
      squares += std::pow(at(in.x, r * c.inputs + k) - mean, 2);
    const double y = (at(in.x, r * c.inputs + n) - mean) /
                     std::sqrt(squares / static_cast<double>(c.inputs) + 1e-6);
    return y * at(in.gate, n) + (layer || c.bias ? at(in.bias, n) : 0);
  }

  // Column n of q, k or v over the stacked weight rows.
  double rotated(int64_t r, int64_t n) const {
    const int64_t width = c.heads.width, half = width / 2, j = n % width;
    const bool value = n >= (c.heads.query + c.heads.kv) * width;
    if (c.ragged || value) return product(r, n);
    const double angle =
        static_cast<double>(in.first_position + r) *
        std::pow(10000.0, -2.0 * static_cast<double>(j % half) / static_cast<double>(width));
    const double other = j < half ? -product(r, n + half) : product(r, n - half);
    return product(r, n) * std::cos(angle) + other * std::sin(angle);
  }

  std::vector<double> qkv() const {
    std::vector<double> all;
    const int64_t q = c.heads.query * c.heads.width, kv = c.heads.kv * c.heads.width;
    for (const auto& [first, last] : {std::pair(int64_t{0}, q), {q, q + kv}, {q + kv, q + 2 * kv}})
      for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t n = first; n < last; ++n) all.push_back(rotated(r, n));
    return all;
  }

  double attention(int64_t r, int64_t n) const {
    const int64_t width = c.heads.width, head = n / width;
    const int64_t kv = head / (c.heads.query / c.heads.kv), row = c.heads.kv * width;
    const int64_t rows = c.rows / c.segments, first = r / rows * (c.inputs / c.segments);
    const int64_t seen = in.visible[static_cast<size_t>(r % rows)];
    std::vector<double> score;
    for (int64_t j = 0; j < seen; ++j) {
      double s = 0;
      for (int64_t d = 0; d < width; ++d)
        s += at(in.x, r * c.outputs + head * width + d) *
             at(in.y, (first + j) * row + kv * width + d);
      score.push_back(s / std::sqrt(static_cast<double>(width)));
    }
    const double top = *std::ranges::max_element(score);
    double sum = 0, out = 0;
    for (int64_t j = 0; j < seen; ++j) {
      const double w = std::exp(score[static_cast<size_t>(j)] - top);
      sum += w;
      out += w * at(in.values, (first + j) * row + kv * width + n % width);
    }
    return out / sum;
  }

  // Rows [first, last) of a matrix with c.inputs columns.
  void rows(std::vector<double>& to, const std::vector<float>& m, int64_t first,
            int64_t last) const {
    for (int64_t i = first * c.inputs; i < last * c.inputs; ++i) to.push_back(at(m, i));
  }

  std::vector<double> moved() const {
    std::vector<double> all;
    const int64_t third = c.rows / 3, half = c.rows / 2;
    if (c.op == Op::concat_rows)
      for (const auto* m : {&in.x, &in.y, &in.x}) rows(all, *m, 0, c.rows);
    if (c.op == Op::slice_rows) rows(all, in.x, third, c.rows - 1);
    if (c.op == Op::write_rows) {
      rows(all, in.x, 0, third);
      rows(all, in.y, 0, half);
      rows(all, in.x, third + half, c.rows);
    }
    if (c.op == Op::upload || c.op == Op::download) rows(all, in.x, 0, c.rows);
    return all;
  }

  double elementwise(int64_t r, int64_t n) const {
    const double x = at(in.x, r * c.inputs + n), y = at(in.y, r * c.inputs + n);
    return c.op == Op::multiply ? x * y : x + double{-0.3f} * y;
  }

  double element(int64_t r, int64_t n) const {
    switch (c.op) {
      case Op::prepare:
      case Op::linear: return linear(r, n);
      case Op::gated_linear: return gated(r, n);
      case Op::layer_norm:
      case Op::rms_norm: return norm(r, n);
      case Op::attention: return attention(r, n);
      case Op::embed: return 3.0 * at(in.weight, in.ids[static_cast<size_t>(r)] * c.outputs + n);
      default: return elementwise(r, n);
    }
  }

  std::vector<double> patches() const {
    std::vector<double> all;
    const int64_t side = c.inputs, patch = c.outputs;
    for (int64_t band = 0; band < c.rows * side / patch; ++band)
      for (int64_t left = 0; left < side; left += patch)
        for (int64_t row = 0; row < 3 * patch; ++row)  // channel by channel
          for (int64_t column = left; column < left + patch; ++column)
            all.push_back(at(in.pixels, (band * 3 * patch + row) * side + column));
    return all;
  }

  std::vector<double> waves() const {
    std::vector<double> all;
    const int64_t half = c.inputs / 2;
    for (const double time : in.times)
      for (int64_t n = 0; n < c.inputs; ++n) {
        const double place =
            half > 1 ? static_cast<double>(n % half) / static_cast<double>(half - 1) : 0;
        const double angle =
            time * 2 * std::numbers::pi / kPeriodMin * std::pow(kPeriodMin / kPeriodMax, place);
        all.push_back(n < half ? std::sin(angle) : std::cos(angle));
      }
    return all;
  }

  std::vector<double> result() const {
    if (c.op == Op::qkv) return qkv();
    if (c.op == Op::patches) return patches();
    if (c.op == Op::embed_times) return waves();
    std::vector<double> all = moved();
    if (!all.empty()) return all;
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t n = 0; n < c.outputs; ++n) all.push_back(element(r, n));
    return all;
  }
};

}  // namespace tendon
