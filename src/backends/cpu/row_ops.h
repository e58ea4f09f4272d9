// Norms, softmax, rotary embedding and element-wise sums for one instruction set S.
#pragma once

#include <cmath>

#include "backends/cpu/kernels.h"
#include "backends/cpu/vector_math.h"

namespace tendon::cpu {
namespace {

constexpr float kNormEps = 1e-6f;

template <class S>
void rms_norm(const float* x, int64_t columns, const float* scale, const float* shift, float* y) {
  constexpr int kLanes = S::kLanes;
  typename S::V lanes[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) {
      const typename S::V v = load<S>(x + c + i * kLanes);
      lanes[i] = S::fma(v, v, lanes[i]);
    }
  double squares = sum_lanes<S>((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
  for (; c < columns; ++c) squares += double{x[c]} * x[c];
  const double mean = squares / static_cast<double>(columns);
  const float factor = static_cast<float>(1.0 / __builtin_sqrt(mean + double{kNormEps}));
  for (c = 0; c + kLanes <= columns; c += kLanes) {
    typename S::V v = load<S>(x + c) * factor * load<S>(scale + c);
    if (shift) v += load<S>(shift + c);
    store<S>(y + c, v);
  }
  for (; c < columns; ++c) y[c] = x[c] * factor * scale[c] + (shift ? shift[c] : 0.f);
}

template <class S>
void layer_norm(const float* x, int64_t columns, const float* scale, const float* shift, float* y) {
  constexpr int kLanes = S::kLanes;
  const auto lanes_sum = [&](float centre, bool squared) {
    typename S::V lanes[4] = {};
    int64_t c = 0;
    for (; c + 4 * kLanes <= columns; c += 4 * kLanes)
      for (int i = 0; i < 4; ++i) {
        const typename S::V v = load<S>(x + c + i * kLanes) - centre;
        lanes[i] = squared ? S::fma(v, v, lanes[i]) : lanes[i] + v;
      }
    double sum = sum_lanes<S>((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
    for (; c < columns; ++c) {
      const double v = double{x[c]} - centre;
      sum += squared ? v * v : v;
    }
    return sum / static_cast<double>(columns);
  };
  const float mean = static_cast<float>(lanes_sum(0.f, false));
  const double rest = lanes_sum(mean, false);  // what rounding the mean left over
  const double variance = lanes_sum(mean, true) - rest * rest;
  const float factor = static_cast<float>(1.0 / __builtin_sqrt(variance + double{kNormEps}));
  const float small = static_cast<float>(rest);
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    store<S>(y + c,
             ((load<S>(x + c) - mean) - small) * factor * load<S>(scale + c) + load<S>(shift + c));
  for (; c < columns; ++c) y[c] = ((x[c] - mean) - small) * factor * scale[c] + shift[c];
}

template <class S>
TENDON_INLINE typename S::V larger(typename S::V a, typename S::V b) {
  return a > b ? a : b;
}

template <class S>
TENDON_INLINE float largest_lane(typename S::V v) {
  float lanes[S::kLanes];
  store<S>(lanes, v);
  for (int half = S::kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

template <class S>
float largest(const float* x, int64_t columns) {
  typename S::V most = {};
  int64_t c = 0;
  for (; c + S::kLanes <= columns; c += S::kLanes)
    most = larger<S>(from_bits<S>(bits<S>(load<S>(x + c)) & 0x7FFFFFFF), most);
  float all = largest_lane<S>(most);
  for (; c < columns; ++c) all = std::fabs(x[c]) > all ? std::fabs(x[c]) : all;
  return all;
}

// The scores of row r that it does not see become −inf, so that whole vectors can follow.
inline void hide(float* s, int64_t rows, int64_t r, int64_t seen, int64_t keys) {
  for (int64_t k = seen; k < keys; ++k)
    s[(k / kPanel * rows + r) * kPanel + k % kPanel] = -INFINITY;
}

template <class S, bool kBf16>
void softmax_to(const SoftmaxBlock& block) {
  const auto [form, s, rows, keys, visible, scale, maximum, sum, old, tile] = block;
  using V = typename S::V;
  constexpr bool kWide = S::tile_words(Form::bf16) == 2;
  constexpr int64_t kLanes = S::kLanes, kWords = kBf16 && !kWide ? kLanes / 2 : kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t* w = tile + r * kTileStride;
    const int64_t seen = visible[r] < keys ? visible[r] : keys;
    if (seen <= 0) {
      old[r] = 1.f;
      std::memset(w, 0, static_cast<size_t>(keys / kLanes * kWords) * sizeof(*w));
      continue;
    }
    hide(s, rows, r, seen, keys);
    V most = all<S>(-INFINITY);
    for (int64_t p = 0; p < keys; p += kPanel)
      for (int64_t i = 0; i < kPanel; i += kLanes)
        most = larger<S>(load<S>(s + p * rows + r * kPanel + i), most);
    const float here = largest_lane<S>(most) * scale;
    const float largest = here > maximum[r] ? here : maximum[r];
    old[r] = sum[r] > 0 ? std::exp(maximum[r] - largest) : 0.f;
    V lanes = {};
    for (int64_t p = 0; p < keys; p += kPanel)
      for (int64_t i = 0; i < kPanel; i += kLanes, w += kWords) {
        const V score = load<S>(s + p * rows + r * kPanel + i);
        const V e = exp<S>(S::fma(score, all<S>(scale), all<S>(-largest)));
        const V seen_only = score == all<S>(-INFINITY) ? V{} : e;  // not-a-number stays
        if constexpr (kBf16)
          store_bf16<S, kWide>(seen_only, w);
        else
          std::memcpy(w, &seen_only, sizeof(seen_only));
        lanes += seen_only;
      }
    sum[r] = sum[r] * old[r] + sum_lanes<S>(lanes);
    maximum[r] = largest;
  }
}

template <class S>
void softmax(const SoftmaxBlock& block) {
  block.form == Form::f32 ? softmax_to<S, false>(block) : softmax_to<S, true>(block);
}

template <class S>
void scale_row(float* x, int64_t columns, float factor) {
  int64_t c = 0;
  for (; c + S::kLanes <= columns; c += S::kLanes) store<S>(x + c, load<S>(x + c) * factor);
  for (; c < columns; ++c) x[c] *= factor;
}

template <class S>
void rotate(float* x, int64_t width, const float* cosine, const float* sine) {
  const int64_t half = width / 2;
  int64_t j = 0;
  for (; j + S::kLanes <= half; j += S::kLanes) {
    const typename S::V a = load<S>(x + j), b = load<S>(x + half + j), c = load<S>(cosine + j),
                        s = load<S>(sine + j);
    store<S>(x + j, a * c - b * s);
    store<S>(x + half + j, b * c + a * s);
  }
  for (; j < half; ++j) {
    const float a = x[j], b = x[half + j];
    x[j] = a * cosine[j] - b * sine[j];
    x[half + j] = b * cosine[j] + a * sine[j];
  }
}

}  // namespace
}  // namespace tendon::cpu
