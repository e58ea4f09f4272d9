// The calls in f32 over logical, row-major values; rounding to a format happens once, at the end.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

struct Operand {
  Spec spec;
  std::span<const float> values;  // empty: absent
};

// One vector per output. The request is legal (fake_rules.h), but for ids of an embedding beyond
// its table: those throw Error(Fault::backend). Bit-equal for every number of threads.
std::vector<std::vector<float>> compute(const Request& request, std::span<const Operand> inputs,
                                        std::span<const Spec> outputs, int threads);

// To what the device's packer stores. bf16: nearest even. bfp8: blocks of 16 along the row, ties
// away from zero; out of a 32-bit accumulator each value is first rounded to 7 significant bits on
// its own, then again to the block's exponent.
void round_to_format(const Spec& spec, bool from_f32, std::span<float> values, int threads);

// ---- Products ----

// A matrix in memory: element (r, c) is at[r * row_stride + c * column_stride].
struct MatrixView {
  const float* at = nullptr;
  int64_t rows = 0, columns = 0;
  int64_t row_stride = 0, column_stride = 1;
};

// Columns [first, last) of a b, each element summed in order of k, to `to` with rows of
// `to_stride` values. a's column stride is 1.
void multiply_columns(const MatrixView& a, const MatrixView& b, int64_t first, int64_t last,
                      float* to, int64_t to_stride);

std::vector<float> linear(const Request& request, std::span<const Operand> inputs, int threads);
std::vector<float> attention(const Request& request, std::span<const Operand> inputs, int threads);

float activate(Activation activation, float x);

}  // namespace tendon::tt
