// labels: unit
// What the TTNN library answered on a simulated Wormhole, against our packers and the fake device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tensor/compare.h"
#include "test_files.h"
#include "ttnn_board.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;
using Exact = std::vector<double>;

class Recording {
 public:
  explicit Recording(const std::string& file)
      : file_(SafetensorsFile::open(std::filesystem::path(TENDON_TEST_TTNN) / file)) {}

  const HostTensor& at(const std::string& name) const {
    const HostTensor* tensor = file_->find(name);
    if (!tensor) throw std::runtime_error("no " + name + " in " + file_->name());
    return *tensor;
  }
  Values values(const std::string& name) const {
    const HostTensor& t = at(name);
    Values v(static_cast<size_t>(t.shape.count()));
    if (t.dtype == DType::i32) {
      const std::vector<double> n = numbers(t);
      v.assign(n.begin(), n.end());
    } else {
      convert_to_f32(t, v);
    }
    return v;
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

// ---- Packers ----

struct Packer : testing::TestWithParam<const char*> {
  const Recording recording{"pack.safetensors"};
  const std::string name = GetParam();
  const Dims dims = recording.dims(name + ".in");
  const Values in = recording.values(name + ".in");
  std::vector<std::byte> bytes(const std::string& what) const {
    const HostTensor& t = recording.at(name + "." + what);
    return {t.bytes.begin(), t.bytes.end()};
  }
};

TEST_P(Packer, writes_every_byte_of_a_bfp8_tensor_as_the_library_does) {
  EXPECT_EQ(pack({dims, Format::bfp8}, in), bytes("bfp8"));
}

TEST_P(Packer, reads_bfp8_as_the_library_does) {
  EXPECT_EQ(unpack({dims, Format::bfp8}, bytes("bfp8")), recording.values(name + ".bfp8_back"));
}

TEST_P(Packer, writes_and_reads_bf16_tiles_and_rows_as_the_library_does) {
  const Spec tiles{dims, Format::bf16}, rows{dims, Format::bf16, Layout::row_major};
  EXPECT_EQ(pack(tiles, in), bytes("bf16_tile"));
  EXPECT_EQ(pack(rows, in), bytes("bf16_rows"));
  const Values back = unpack(tiles, bytes("bf16_tile"));
  EXPECT_EQ(back, unpack(rows, bytes("bf16_rows")));
  EXPECT_EQ(pack(rows, back), bytes("bf16_rows"));
}

INSTANTIATE_TEST_SUITE_P(recorded, Packer,
                         testing::Values("normal", "wide", "integers", "ties", "edges"));

// ---- Calls ----

// One recorded case on the fake device: its inputs by name, uploaded on first use.
struct Stage {
  const Recording& in;
  Board& board;

  TensorId put(const std::string& name, Format format = Format::bf16,
               Layout layout = Layout::tile) const {
    return board.put({in.dims("in." + name), format, layout}, in.values("in." + name));
  }
  std::vector<Output> run(const Request& request) const { return board.run_all(request); }
};

// The formula in float64, on the inputs as recorded.
struct Formula {
  const Recording& in;

  Exact of(const std::string& name) const {
    const Values v = in.values("in." + name);
    return {v.begin(), v.end()};
  }
  // As the device holds it in bfp8.
  Exact stored(const std::string& name) const {
    const Spec spec{in.dims("in." + name), Format::bfp8};
    const Values v = unpack(spec, pack(spec, in.values("in." + name)));
    return {v.begin(), v.end()};
  }
  int64_t columns(const std::string& name) const { return in.dims("in." + name)[3]; }
};

double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

// f(x w + shift), where w has n columns and shift may be empty.
Exact linear(const Exact& x, const Exact& w, const Exact& shift, int64_t n, double (*f)(double)) {
  const int64_t k = std::ssize(w) / n, m = std::ssize(x) / k;
  Exact y(static_cast<size_t>(m * n));
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < n; ++c) {
      double sum = shift.empty() ? 0 : shift[static_cast<size_t>(c)];
      for (int64_t i = 0; i < k; ++i)
        sum += x[static_cast<size_t>(r * k + i)] * w[static_cast<size_t>(i * n + c)];
      y[static_cast<size_t>(r * n + c)] = f ? f(sum) : sum;
    }
  return y;
}

// (x - mean) / sqrt(var + 1e-6), or without the mean.
Exact normalized(const Formula& in, bool centered) {
  Exact x = in.of("x");
  const auto n = static_cast<size_t>(in.columns("x"));
  for (size_t r = 0; r < x.size(); r += n) {
    double mean = 0, squares = 0;
    for (size_t c = 0; c < n; ++c) mean += centered ? x[r + c] / static_cast<double>(n) : 0;
    for (size_t c = 0; c < n; ++c) squares += (x[r + c] - mean) * (x[r + c] - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(n) + 1e-6);
    for (size_t c = 0; c < n; ++c) x[r + c] = (x[r + c] - mean) / deviation;
  }
  return x;
}

// f(x, scale, shift) column by column.
template <class F>
Exact by_column(const Exact& x, const Exact& scale, const Exact& shift, const F& f) {
  Exact y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    y[i] = f(x[i], scale[i % scale.size()], shift[i % shift.size()]);
  return y;
}

Exact attention(const Formula& in, double scale, bool masked) {
  const Exact q = in.of("q"), k = in.of("k"), v = in.of("v");
  const Exact mask = masked ? in.of("mask") : Exact{};
  const auto [batches, heads, m, d] = in.in.dims("in.q");
  const int64_t groups = in.in.dims("in.k")[1], n = in.in.dims("in.k")[2];
  const auto at = [d = d](int64_t row, int64_t c) { return static_cast<size_t>(row * d + c); };
  Exact y(q.size()), weights(static_cast<size_t>(n));
  for (int64_t h = 0; h < batches * heads; ++h)
    for (int64_t r = 0; r < m; ++r) {
      const int64_t first = h / (heads / groups) * n;
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        double score = 0;
        for (int64_t c = 0; c < d; ++c) score += q[at(h * m + r, c)] * k[at(first + j, c)];
        score = score * scale + (masked ? mask[static_cast<size_t>(r * n + j)] : 0);
        sum += weights[static_cast<size_t>(j)] = std::exp(score);
      }
      for (int64_t j = 0; j < n; ++j)
        for (int64_t c = 0; c < d; ++c)
          y[at(h * m + r, c)] += weights[static_cast<size_t>(j)] / sum * v[at(first + j, c)];
    }
  return y;
}

Exact rotated(const Formula& in) {
  const Exact x = in.of("x"), cos = in.of("cos"), sin = in.of("sin");
  const auto d = static_cast<size_t>(in.columns("x"));
  Exact y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double turned = i % d < d / 2 ? -x[i + d / 2] : x[i - d / 2];
    y[i] = x[i] * cos[i % cos.size()] + turned * sin[i % sin.size()];
  }
  return y;
}

struct Case {
  std::string name;  // of the file
  std::function<std::vector<Output>(const Stage&)> play;
  std::function<Exact(const Formula&)> exact;  // none: every bit must agree
};

Case linear_case(const std::string& name, Request request, double (*f)(double) = nullptr,
                 Format weight = Format::bf16) {
  request.call = Call::linear;
  return {name,
          [=](const Stage& s) {
            Request r = request;
            r.inputs = {s.put("x"), s.put("w", weight), s.put("b")};
            return s.run(r);
          },
          [=](const Formula& in) {
            const Exact w = weight == Format::bfp8 ? in.stored("w") : in.of("w");
            return linear(in.of("x"), w, in.of("b"), in.columns("w"), f);
          }};
}

Case attention_case(const std::string& name, double scale, bool masked) {
  return {
      name,
      [=](const Stage& s) {
        return s.run({.call = Call::attention,
                      .inputs = {s.put("q"), s.put("k"), s.put("v"), masked ? s.put("mask") : 0},
                      .scalar = static_cast<float>(scale),
                      .compute = {.f32_accumulate = false}});
      },
      [=](const Formula& in) { return attention(in, scale, masked); }};
}

// A call of the named inputs whose result is exact.
Case moved_case(const std::string& name, Request request, std::vector<std::string> inputs = {"x"},
                Layout layout = Layout::tile) {
  return {name,
          [=](const Stage& s) {
            Request r = request;
            for (const std::string& input : inputs)
              r.inputs.push_back(s.put(input, input == "ids" ? Format::u32 : Format::bf16, layout));
            return s.run(r);
          },
          nullptr};
}

std::vector<Case> linear_cases() {
  const Compute half{.f32_accumulate = false};
  return {
      linear_case("linear_bias", {}),
      linear_case("linear_bias_bf16_accumulate", {.compute = half}),
      linear_case("linear_bias_hifi2", {.compute = {.fidelity = Fidelity::hifi2}}),
      linear_case("linear_long_k", {.compute = half}),
      linear_case("linear_gelu_tanh", {.activation = Activation::gelu_tanh}, gelu),
      linear_case("linear_silu", {.activation = Activation::silu}, silu),
      linear_case("linear_bfp8_weight", {}, nullptr, Format::bfp8),
      linear_case("linear_bfp8_weight_and_output", {.format = Format::bfp8}, nullptr, Format::bfp8),
      linear_case("linear_ragged_rows", {}),
      {"matmul_default",
       [](const Stage& s) {
         return s.run({.call = Call::linear, .inputs = {s.put("a"), s.put("b"), 0}});
       },
       [](const Formula& in) { return linear(in.of("a"), in.of("b"), {}, 64, nullptr); }},
  };
}

std::vector<Case> norm_cases() {
  const auto scaled = [](double x, double s, double t) { return x * s + t; };
  return {
      {"layer_norm",
       [](const Stage& s) {
         return s.run({.call = Call::layer_norm,
                       .inputs = {s.put("x"), s.put("w"), s.put("b")},
                       .scalar = 1e-6f});
       },
       [=](const Formula& in) {
         return by_column(normalized(in, true), in.of("w"), in.of("b"), scaled);
       }},
      {"rms_norm",
       [](const Stage& s) {
         return s.run(
             {.call = Call::rms_norm, .inputs = {s.put("x"), s.put("w")}, .scalar = 1e-6f});
       },
       [=](const Formula& in) {
         return by_column(normalized(in, false), in.of("w"), Exact{0}, scaled);
       }},
  };
}

std::vector<Case> value_cases() {
  return {
      {"euler_step",
       [](const Stage& s) {
         const auto step =
             s.run({.call = Call::multiply_scalar, .inputs = {s.put("v")}, .scalar = -0.1f})[0];
         return s.run({.call = Call::add, .inputs = {s.put("x"), step.id}});
       },
       [](const Formula& in) {
         return by_column(in.of("x"), in.of("v"), Exact{0},
                          [](double x, double v, double) { return x - 0.1 * v; });
       }},
      {"gated_multiply",
       [](const Stage& s) {
         return s.run({.call = Call::multiply, .inputs = {s.put("x"), s.put("v")}});
       },
       [](const Formula& in) {
         return by_column(in.of("x"), in.of("v"), Exact{0},
                          [](double x, double v, double) { return x * v; });
       }},
      {"rotary_embedding",
       [](const Stage& s) {
         return s.run({.call = Call::rotary, .inputs = {s.put("x"), s.put("cos"), s.put("sin")}});
       },
       rotated},
      attention_case("sdpa_mha_2x72_padded_to_96", 1 / std::sqrt(72.0), false),
      attention_case("sdpa_mqa_8to1_masked", 1.0 / 8, true),
      attention_case("sdpa_mqa_8to1_head256_cross", 1.0 / 16, true),
  };
}

std::vector<Case> moved_cases() {
  return {
      moved_case("concat_columns", {.call = Call::concat, .axis = 3}, {"a", "b"}),
      moved_case("concat_rows_aligned", {.call = Call::concat, .axis = 2}, {"a", "b"}),
      moved_case("concat_rows_ragged", {.call = Call::concat, .axis = 2}, {"a", "b"}),
      moved_case("concat_heads", {.call = Call::concat_heads}),
      moved_case("create_qkv_heads_mha",
                 {.call = Call::create_qkv_heads, .heads = 2, .kv_heads = 2}),
      moved_case("create_qkv_heads_mqa",
                 {.call = Call::create_qkv_heads, .heads = 8, .kv_heads = 1}),
      moved_case("embedding", {.call = Call::embedding}, {"ids", "table"}, Layout::row_major),
      moved_case("pad_rows", {.call = Call::pad, .dims = {1, 1, 64, 64}}),
      moved_case("slice_rows_aligned",
                 {.call = Call::slice, .begin = {0, 0, 32, 0}, .dims = {1, 1, 64, 64}}),
      moved_case("slice_rows_ragged",
                 {.call = Call::slice, .begin = {0, 0, 1, 0}, .dims = {1, 1, 51, 64}}),
      moved_case("typecast_bfp8", {.call = Call::typecast, .format = Format::bfp8}),
  };
}

std::vector<Case> all_cases() {
  std::vector<Case> all = linear_cases();
  for (const auto& more : {norm_cases(), value_cases(), moved_cases()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string text(const Comparison& c) {
  return fmt::format("PCC {:.7f}, relative L2 {:.6f}, max error {:.6f}", c.pcc, c.relative_l2,
                     c.max_error);
}

void PrintTo(const Case& c, std::ostream* to) { *to << c.name; }

struct Recorded : testing::TestWithParam<Case> {};

TEST_P(Recorded, is_as_near_to_the_library_as_the_library_is_to_its_formula) {
  const Case& c = GetParam();
  const Recording recording("ops/" + c.name + ".safetensors");
  Board board;
  const std::vector<Output> outputs = c.play({recording, board});
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string which = fmt::format("out.{}", i);
    const Values library = recording.values(which), ours = board.get(outputs[i]);
    const Spec& spec = outputs[i].spec;
    EXPECT_EQ(spec.dims, recording.dims(which));
    EXPECT_EQ(unpack(spec, pack(spec, ours)), ours);  // rounded to its format
    EXPECT_EQ(spec.format == Format::bfp8, recording.metadata("out_dtype").ends_with("BFLOAT8_B"));
    EXPECT_EQ(spec.layout == Layout::tile, recording.metadata("out_layout").ends_with("TILE"));
    if (!c.exact) {
      EXPECT_EQ(ours, library);
      continue;
    }
    const Exact formula = c.exact({recording});
    const Comparison own = compare(library, Values(formula.begin(), formula.end()));
    const Comparison apart = compare(ours, library);
    const std::string numbers = text(apart) + "; the library to its formula: " + text(own);
    SCOPED_TRACE(numbers);
    EXPECT_LE(apart.relative_l2, 1.5 * own.relative_l2);
    // Both are rounded, so that the largest values differ by whole steps of bf16.
    const double step = std::exp2(std::floor(std::log2(own.scale)) - 7);
    EXPECT_LE(apart.max_error, std::ceil(1.5 * own.max_error / step) * step);
    // The library's attention is itself only .9997 from its formula: it rounds inside.
    EXPECT_GE(apart.pcc, c.name.starts_with("sdpa") ? 0.9995 : 0.9999);
  }
}

INSTANTIATE_TEST_SUITE_P(of_the_library, Recorded, testing::ValuesIn(all_cases()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace tendon::tt
