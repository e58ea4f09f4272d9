// One table of op cases: drives the op tests on every backend, the op benchmark and the coverage
// listing. An op without a row fails the tests.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/ops.h"

namespace tendon {

// What a case has beyond its sizes.
struct OpVariant {
  Heads heads;  // qkv and attention
  Activation activation = Activation::none;
  bool bias = false, residual = false, gate = false;
  bool ragged = false;       // attention: rows see different numbers of keys; qkv: no positions;
                             // patches: of bytes
  int64_t segments = 1;      // attention
  DType dtype = DType::f32;  // of the weight
  bool full_size = false;    // a shape of the published models: slow on the reference
};

struct OpCase : OpVariant {
  Op op = Op::linear;
  std::string_view why;  // what this row is for
  int64_t rows = 1;      // of x, q or the ids; pictures, times
  int64_t inputs = 1;    // columns of x; for attention the keys; the side of a picture
  int64_t outputs = 1;   // columns of the result; the side of a patch
  double bound = 1e-6;   // relative L2 of a float backend against float64
};

constexpr double kPeriodMin = 4e-3, kPeriodMax = 4;  // of the rows of embed_times

std::span<const OpCase> op_table();
std::string describe(const OpCase& c);

// The inputs of a case, uniform in [-1, 1), the same for every backend.
struct OpInputs {
  std::vector<float> x, y, weight, bias, residual, gate;  // y: second operand, k, or shift
  std::vector<float> values;                              // attention: v
  std::vector<float> pixels;                              // pictures, in bands
  std::vector<float> times;                               // in (0, 1]
  std::vector<int32_t> ids, visible;
  int64_t first_position = 0;
};
OpInputs make_inputs(const OpCase& c);

// Runs the case and returns everything it computed, in order (qkv: q, then k, then v).
std::vector<float> run_case(Ops& ops, const OpCase& c, const OpInputs& in);

}  // namespace tendon
