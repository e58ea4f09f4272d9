// What the TTNN library was asked on a simulated Wormhole while its answers were recorded
// (tests/data/ttnn): one file of inputs and outputs per case.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "ttnn_board.h"

namespace tendon::tt {

class Recording {
 public:
  explicit Recording(const std::string& file)
      : file_(SafetensorsFile::open(std::filesystem::path(TENDON_TEST_TTNN) / file)) {}

  const HostTensor& at(const std::string& name) const {
    const HostTensor* tensor = file_->find(name);
    if (!tensor) throw std::runtime_error("no " + name + " in " + file_->name());
    return *tensor;
  }
  std::vector<float> values(const std::string& name) const {
    const std::vector<double> v = numbers(at(name));
    return {v.begin(), v.end()};
  }
  // With axes of length 1 before.
  Dims dims(const std::string& name) const {
    const Shape& shape = at(name).shape;
    Dims d{1, 1, 1, 1};
    std::ranges::copy_backward(shape.dims(), d.end());
    return d;
  }
  std::string metadata(const std::string& key) const { return file_->metadata().at(key); }

 private:
  std::shared_ptr<const SafetensorsFile> file_;
};

struct CaseInput {
  std::string name;  // in the file; "": 0 in the request
  Format format = Format::bf16;
  Layout layout = Layout::tile;
};

struct Case {
  std::string name;  // of the file
  Request request;   // without inputs
  std::vector<CaseInput> inputs;
  double relative_l2 = 0;  // of the fake device to the library, at most; 0: every bit agrees
};

inline void PrintTo(const Case& c, std::ostream* to) { *to << c.name; }

inline std::vector<Output> play(const Case& c, const Recording& from, Board& board) {
  Request r = c.request;
  for (const auto& [name, format, layout] : c.inputs)
    r.inputs.push_back(name.empty() ? 0
                                    : board.put({from.dims("in." + name), format, layout},
                                                from.values("in." + name)));
  return board.run_all(r);
}

// Measured: 0.0010 to 0.0022 where both round once to bf16, 0.0031 to 0.0035 where one of them also
// rounds inside, 0.0026 to 0.0065 with sums in bf16, two passes of a product or bfp8; the library's
// attention is 0.024 from its formula.
// A norm in lofi is 0.0087; without its cuts 0.041.
constexpr double kOnce = 2.5e-3, kTwice = 4e-3, kCoarse = 8e-3, kLofiNorm = 1.2e-2,
                 kAttention = 3e-2;

inline std::vector<Case> recorded_cases() {
  const Compute half{.f32_accumulate = false};
  const auto linear = [](const std::string& name, Request r, double bound = kOnce,
                         Format weight = Format::bf16) {
    r.call = Call::linear;
    return Case{"linear_" + name, r, {{"x"}, {"w", weight}, {"b"}}, bound};
  };
  const auto attention = [=](const std::string& name, double scale, const std::string& mask) {
    return Case{"sdpa_" + name,
                {.call = Call::attention, .scalar = static_cast<float>(scale), .compute = half},
                {{"q"}, {"k"}, {"v"}, {mask}},
                kAttention};
  };
  const auto rows = Layout::row_major;
  const Format bfp8 = Format::bfp8;
  return {
      linear("bias", {}),
      linear("bias_bf16_accumulate", {.compute = half}, kCoarse),
      linear("bias_hifi2", {.compute = {.fidelity = Fidelity::hifi2}}),
      {"linear_lofi",
       {.call = Call::linear, .compute = {.fidelity = Fidelity::lofi}},
       {{"x"}, {"w"}, {""}},
       kOnce},
      {"rms_norm_lofi",
       {.call = Call::rms_norm, .scalar = 1e-6f, .compute = {.fidelity = Fidelity::lofi}},
       {{"x"}, {"w"}},
       kLofiNorm},
      linear("long_k", {.compute = half}, kCoarse),
      linear("gelu_tanh", {.activation = Activation::gelu_tanh}, kTwice),
      linear("silu", {.activation = Activation::silu}, kTwice),
      linear("bfp8_weight", {}, kOnce, bfp8),
      linear("bfp8_weight_and_output", {.format = bfp8}, kCoarse, bfp8),
      linear("ragged_rows", {}),
      {"matmul_default", {.call = Call::linear}, {{"a"}, {"b"}, {""}}, kCoarse},
      {"layer_norm", {.call = Call::layer_norm, .scalar = 1e-6f}, {{"x"}, {"w"}, {"b"}}, kOnce},
      {"rms_norm", {.call = Call::rms_norm, .scalar = 1e-6f}, {{"x"}, {"w"}}, kOnce},
      {"gated_multiply", {.call = Call::multiply}, {{"x"}, {"v"}}},
      {"rotary_embedding", {.call = Call::rotary}, {{"x"}, {"cos"}, {"sin"}}, kTwice},
      attention("mha_2x72_padded_to_96", 1 / std::sqrt(72.0), ""),
      attention("mqa_8to1_masked", 1.0 / 8, "mask"),
      attention("mqa_8to1_head256_cross", 1.0 / 16, "mask"),
      {"concat_columns", {.call = Call::concat, .axis = 3}, {{"a"}, {"b"}}},
      {"concat_rows_aligned", {.call = Call::concat, .axis = 2}, {{"a"}, {"b"}}},
      {"concat_rows_ragged", {.call = Call::concat, .axis = 2}, {{"a"}, {"b"}}},
      {"concat_heads", {.call = Call::concat_heads}, {{"x"}}},
      {"create_qkv_heads_mha",
       {.call = Call::create_qkv_heads, .heads = 2, .kv_heads = 2},
       {{"x"}}},
      {"create_qkv_heads_mqa",
       {.call = Call::create_qkv_heads, .heads = 8, .kv_heads = 1},
       {{"x"}}},
      {"embedding",
       {.call = Call::embedding},
       {{"ids", Format::u32, rows}, {"table", Format::bf16, rows}}},
      {"pad_rows", {.call = Call::pad, .dims = {1, 1, 64, 64}}, {{"x"}}},
      {"slice_rows_aligned",
       {.call = Call::slice, .begin = {0, 0, 32, 0}, .dims = {1, 1, 64, 64}},
       {{"x"}}},
      {"slice_rows_ragged",
       {.call = Call::slice, .begin = {0, 0, 1, 0}, .dims = {1, 1, 51, 64}},
       {{"x"}}},
      {"typecast_bfp8", {.call = Call::typecast, .format = bfp8}, {{"x"}}},
  };
}

}  // namespace tendon::tt
