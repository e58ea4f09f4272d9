#include "op_table.h"

#include <cmath>

#include "tensor/bf16.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr Heads kVision{16, 16, 72}, kGemma{8, 1, 256}, kTiny{4, 1, 16}, kGrouped{6, 2, 10};

constexpr auto gelu = Activation::gelu_tanh, silu = Activation::silu;

constexpr OpCase row(Op op, std::string_view why, int64_t rows, int64_t inputs, int64_t outputs = 1,
                     const OpVariant& with = {}) {
  return {with, op, why, rows, inputs, outputs};
}

constexpr OpCase kRows[] = {
    row(Op::upload, "one value", 1, 1),
    row(Op::upload, "ragged", 7, 13),
    row(Op::download, "ragged", 5, 31),
    row(Op::prepare, "stacked parts, odd rows", 3, 17, 9),
    row(Op::linear, "one product", 1, 1, 1),
    row(Op::linear, "primes, bias", 3, 7, 5, {.bias = true}),
    row(Op::linear, "tail of every block size", 19, 131, 67, {.activation = gelu, .bias = true}),
    row(Op::linear, "one row", 1, 257, 33, {.activation = silu, .bias = true}),
    row(Op::linear, "residual repeats over images", 6, 40, 24, {.bias = true, .residual = true}),
    row(Op::linear, "residual and bias", 7, 38, 26, {.bias = true, .residual = true}),
    row(Op::linear, "gated residual", 5, 36, 52, {.residual = true, .gate = true}),
    row(Op::linear, "everything", 6, 29, 23,
        {.activation = silu, .bias = true, .residual = true, .gate = true}),
    row(Op::linear, "several blocks of inputs, the last one short", 31, 2309, 37,
        {.activation = gelu, .bias = true}),
    row(Op::linear, "several passes over the inputs", 420, 9001, 3,
        {.activation = gelu, .bias = true, .residual = true, .gate = true}),
    row(Op::linear, "bf16 weight", 4, 45, 21, {.dtype = DType::bf16}),
    row(Op::linear, "f16 weight", 2, 19, 3, {.dtype = DType::f16}),
    row(Op::gated_linear, "one product", 1, 1, 1),
    row(Op::gated_linear, "odd", 5, 36, 53),
    row(Op::gated_linear, "bf16 weight", 3, 33, 7, {.dtype = DType::bf16}),
    row(Op::layer_norm, "one column per lane and a tail", 3, 41, 41),
    row(Op::layer_norm, "vision width", 4, 1152, 1152),
    row(Op::rms_norm, "odd", 2, 37, 37),
    row(Op::rms_norm, "with shift", 3, 64, 64, {.bias = true}),
    row(Op::rms_norm, "prefix width", 3, 2048, 2048),
    row(Op::qkv, "tiny, one shared head", 5, 33, 6 * 16, {.heads = kTiny}),
    row(Op::qkv, "no rotary, bias", 3, 19, 10 * 10,
        {.heads = kGrouped, .bias = true, .ragged = true}),
    row(Op::qkv, "parts of whole panels, bias, no rotary", 3, 70, 3 * 32,
        {.heads = {2, 2, 16}, .bias = true, .ragged = true}),
    row(Op::qkv, "parts of whole panels, rotary", 17, 70, 128, {.heads = {2, 1, 32}}),
    row(Op::attention, "one key", 1, 1, 64, {.heads = kTiny}),
    row(Op::attention, "odd head width, two shared heads", 7, 13, 60,
        {.heads = kGrouped, .ragged = true}),
    row(Op::attention, "head wider than a block of words", 3, 40, 2 * 600,
        {.heads = {2, 1, 600}, .ragged = true}),
    row(Op::attention, "several blocks of keys, rows that see none of the later ones", 400, 701,
        2 * 16, {.heads = {2, 1, 16}, .ragged = true}),
    row(Op::attention, "segments do not see each other", 12, 12, 64,
        {.heads = {4, 4, 16}, .segments = 3}),
    row(Op::embed, "odd", 5, 101, 19),
    row(Op::add_scaled, "ragged", 7, 11, 11),
    row(Op::multiply, "ragged", 5, 13, 13),
    row(Op::concat_rows, "two parts", 5, 9, 9),
    row(Op::slice_rows, "middle", 9, 5, 5),
    row(Op::write_rows, "middle", 9, 5, 5),
    row(Op::patches, "two pictures of 3 by 3 patches", 2, 21, 7),
    row(Op::patches, "whole tiles", 1, 64, 16),
    row(Op::patches, "of bytes", 2, 21, 7, {.ragged = true}),
    row(Op::patches, "of bytes, whole tiles", 1, 64, 16, {.ragged = true}),
    row(Op::embed_times, "ragged", 3, 38),
    row(Op::embed_times, "whole tiles", 32, 128),
    row(Op::embed_times, "one time, one wave", 1, 2),
    row(Op::linear, "vision mlp up", 256, 1152, 4304,
        {.activation = gelu, .bias = true, .full_size = true}),
    row(Op::linear, "vision mlp down", 256, 4304, 1152,
        {.bias = true, .residual = true, .full_size = true}),
    row(Op::linear, "prefix mlp down", 60, 16384, 2048, {.residual = true, .full_size = true}),
    row(Op::gated_linear, "expert mlp", 50, 1024, 4096, {.full_size = true}),
    row(Op::qkv, "expert", 50, 1024, 2560, {.heads = kGemma, .full_size = true}),
    row(Op::attention, "one image", 256, 256, 1152, {.heads = kVision, .full_size = true}),
    row(Op::attention, "suffix on prefix", 50, 867, 2048, {.heads = kGemma, .full_size = true}),
};

// Uniform in [-1, 1), a function of the index and the stream (splitmix64).
std::vector<float> uniform(int64_t count, uint64_t stream) {
  std::vector<float> v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) {
    uint64_t z = (stream << 40) + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    v[i] = static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1.f;
  }
  return v;
}

int64_t weight_rows(const OpCase& c) {
  if (c.op == Op::gated_linear) return 2 * c.outputs;
  if (c.op == Op::embed) return c.inputs;
  return c.outputs;
}

int64_t weight_columns(const OpCase& c) { return c.op == Op::embed ? c.outputs : c.inputs; }

WeightKind kind(Op op) {
  if (op == Op::gated_linear) return WeightKind::gated;
  return op == Op::embed ? WeightKind::table : WeightKind::linear;
}

// A weight whose f32 values are already exact in `dtype`, stored in it.
HostTensor stored(std::vector<float>& values, const Shape& shape, DType dtype) {
  if (dtype == DType::f32) return host_tensor("weight", shape, values);
  auto narrow = std::make_shared<std::vector<uint16_t>>();
  for (float& v : values) {
    const bool bf16 = dtype == DType::bf16;
    const int halves = static_cast<int>(v * 512.f);  // 10 bits: exact as a half
    uint16_t bits = bf16 ? to_bf16(v) : static_cast<uint16_t>(halves < 0 ? 0x8000 : 0);
    for (int e = -9; !bf16 && halves != 0 && e < 1; ++e) {
      const double mantissa = std::abs(halves) / 512.0 / std::pow(2.0, e);
      if (mantissa < 1.0 || mantissa >= 2.0) continue;
      bits = static_cast<uint16_t>(bits | ((e + 15) << 10) |
                                   static_cast<int>((mantissa - 1.0) * 1024.0));
    }
    narrow->push_back(bits);
    v = bf16 ? from_bf16(bits) : from_f16(bits);
  }
  return {"weight", dtype, shape, std::as_bytes(std::span(*narrow)), narrow};
}

void append(std::vector<float>& to, const std::vector<float>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

}  // namespace

std::span<const OpCase> op_table() { return kRows; }

std::string describe(const OpCase& c) {
  return fmt::format("{} [{}, {}] -> [{}] {} ({})", name(c.op), c.rows, c.inputs, c.outputs,
                     name(c.dtype), c.why);
}

OpInputs make_inputs(const OpCase& c) {
  OpInputs in;
  const bool attention = c.op == Op::attention;
  in.x = uniform(c.rows * (attention ? c.outputs : c.inputs), 1);
  const int64_t kv = c.heads.kv * c.heads.width;
  in.y = uniform(attention ? c.inputs * kv : c.rows * c.inputs, 2);
  in.values = uniform(attention ? c.inputs * kv : 0, 3);
  in.weight = uniform(weight_rows(c) * weight_columns(c), 4);
  stored(in.weight, {weight_rows(c), weight_columns(c)}, c.dtype);  // rounds the values
  in.bias = uniform(c.outputs, 5);
  in.gate = uniform(c.outputs, 6);
  in.residual = uniform((c.rows % 2 == 0 ? c.rows / 2 : c.rows) * c.outputs, 7);
  for (int64_t i = 0; i < c.rows; ++i) in.ids.push_back(static_cast<int32_t>(i * 37 % c.inputs));
  for (int64_t i = 0; c.op == Op::patches && i < 3 * c.rows * c.inputs * c.inputs; ++i)
    in.pixels.push_back(static_cast<float>(i * 91 % 256) / 255.f * 2.f - 1.f);
  for (int64_t i = 0; i < c.rows; ++i)
    in.times.push_back(1.f - static_cast<float>(i) / static_cast<float>(c.rows));
  const int64_t keys = c.inputs / c.segments;
  for (int64_t i = 0; attention && i < c.rows / c.segments; ++i)
    in.visible.push_back(static_cast<int32_t>(c.ragged ? 1 + i * 5 % keys : keys));
  in.first_position = 3;
  return in;
}

std::vector<float> run_case(Ops& ops, const OpCase& c, const OpInputs& in) {
  const int64_t columns = c.op == Op::attention ? c.outputs : c.inputs;
  const Tensor x = ops.upload(in.x, {c.rows, columns});
  std::vector<float> weight = in.weight;
  const HostTensor matrix = stored(weight, {weight_rows(c), weight_columns(c)}, c.dtype);
  const auto prepared = [&](std::vector<HostTensor> parts) {
    return ops.prepare({"weight", kind(c.op), std::move(parts),
                        c.bias ? in.bias : std::vector<float>{},
                        c.op == Op::qkv ? c.heads.width : 0});
  };
  const auto row = [&](const std::vector<float>& v) { return ops.upload(v, {1, c.outputs}); };
  const auto second = [&] { return ops.upload(in.y, {c.rows, c.inputs}); };
  switch (c.op) {
    case Op::upload:
    case Op::download: return ops.download(x);
    case Op::prepare:
      return ops.download(ops.linear(x, prepared({matrix.rows(0, 2), matrix.rows(2, c.outputs)})));
    case Op::linear: {
      Epilogue e{.activation = c.activation};
      if (c.gate) e.gate = row(in.gate);
      if (c.residual)
        e.residual = ops.upload(in.residual, {std::ssize(in.residual) / c.outputs, c.outputs});
      return ops.download(ops.linear(x, prepared({matrix}), e));
    }
    case Op::gated_linear: return ops.download(ops.gated_linear(x, prepared({matrix})));
    case Op::layer_norm: return ops.download(ops.layer_norm(x, row(in.gate), row(in.bias)));
    case Op::rms_norm:
      return ops.download(ops.rms_norm(x, row(in.gate), c.bias ? row(in.bias) : Tensor{}));
    case Op::qkv: {
      const auto position = c.ragged ? std::optional<int64_t>{} : in.first_position;
      const Qkv r = ops.qkv(x, prepared({matrix}), c.heads, position);
      std::vector<float> all = ops.download(r.q);
      append(all, ops.download(r.k));
      append(all, ops.download(r.v));
      return all;
    }
    case Op::attention: {
      const Shape shape{c.inputs, c.heads.kv * c.heads.width};
      return ops.download(ops.attention(x, ops.upload(in.y, shape), ops.upload(in.values, shape),
                                        c.heads, {in.visible, c.segments}));
    }
    case Op::embed: return ops.download(ops.embed(prepared({matrix}), in.ids, 3.f));
    case Op::add_scaled: return ops.download(ops.add_scaled(x, second(), -0.3f));
    case Op::multiply: return ops.download(ops.multiply(x, second()));
    case Op::concat_rows: {
      const Tensor parts[] = {x, second(), x};
      return ops.download(ops.concat_rows(parts));
    }
    case Op::slice_rows: return ops.download(ops.slice_rows(x, c.rows / 3, c.rows - 1));
    case Op::write_rows: {
      Tensor to = x;
      ops.write_rows(to, ops.slice_rows(second(), 0, c.rows / 2), c.rows / 3);
      return ops.download(to);
    }
    case Op::patches:
      return ops.download(ops.patches({in.pixels, c.rows, c.inputs, c.outputs, c.ragged}));
    case Op::embed_times:
      return ops.download(ops.embed_times({in.times, c.inputs, kPeriodMin, kPeriodMax}));
  }
  fail(Fault::internal, "no case runs op {}", static_cast<int>(c.op));
}

}  // namespace tendon
