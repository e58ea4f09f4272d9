#include "backends/ttnn/tt_api.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "tensor/check.h"

namespace tendon::tt {

const CallInfo& info(Call call) {
  using enum OpClass;
  static const std::array<CallInfo, kCallCount> all = {{
      {"reshape", utilities, {{"x"}}},
      {"slice", utilities, {{"x"}}},
      {"pad", utilities, {{"x"}}},
      {"concat", concat, {{"input"}}},
      {"permute", utilities, {{"x", false}}},
      {"typecast", utilities, {{"x"}}},
      {"linear", linear, {{"x"}, {"w"}, {"bias", true, true}}},
      {"layer_norm", norm, {{"x", false}, {"scale", false}, {"shift", false}}},
      {"rms_norm", norm, {{"x", false}, {"scale", false}}},
      {"attention", attention, {{"q"}, {"k"}, {"v"}, {"mask", false, true}}},
      {"rotary", elementwise, {{"x"}, {"cos", false}, {"sin", false}}},
      {"create_qkv_heads", utilities, {{"x"}}},
      {"concat_heads", utilities, {{"x"}}},
      {"embedding", embedding, {{"ids", false}, {"table", false}}},
      {"add", elementwise, {{"x"}, {"y"}}},
      {"multiply", elementwise, {{"x"}, {"y"}}},
      {"multiply_scalar", elementwise, {{"x"}}},
      {"sin", elementwise, {{"x", false}}},
      {"cos", elementwise, {{"x", false}}},
      {"copy", utilities, {{"x"}, {"y"}}},
  }};
  return all[static_cast<size_t>(call)];
}

Dims padded(const Spec& spec) {
  Dims dims = spec.dims;
  if (spec.layout == Layout::row_major) return dims;
  dims[2] = round_up(dims[2]);
  dims[3] = round_up(dims[3]);
  return dims;
}

// Of bfp8: one exponent per row of 16 values, then sign and 7 bits of each value.
int64_t tile_bytes(Format format) {
  constexpr int64_t kValues = kTile * kTile;
  if (format == Format::bfp8) return kValues / kBlock + kValues;
  return kValues * (format == Format::u8 ? 1 : format == Format::bf16 ? 2 : 4);
}

int64_t byte_size(const Spec& spec) {
  return count(padded(spec)) * tile_bytes(spec.format) / (kTile * kTile);
}

std::string to_string(const Spec& spec) {
  return fmt::format("{} {} {} {}", to_string(Shape(spec.dims)), name(spec.format),
                     name_in(kLayouts, spec.layout), name_in(kMemories, spec.memory));
}

namespace {
// Along the last two axes only whole tiles can be copied; the rest goes through rows.
bool moves_whole_tiles(const Request& r, InputSpecs in) {
  if (r.call == Call::slice) return r.begin[2] % kTile == 0 && r.begin[3] % kTile == 0;
  if (r.call != Call::concat || r.axis < 2) return true;
  return std::ranges::all_of(in, [&](const std::optional<Spec>& x) {
    return x->dims[static_cast<size_t>(r.axis)] % kTile == 0;
  });
}

Dims output_dims(const Request& r, InputSpecs in) {
  Dims d = in[0]->dims;
  const auto axis = static_cast<size_t>(r.axis);
  switch (r.call) {
    case Call::reshape:
    case Call::pad: return r.dims;
    case Call::slice:
      for (size_t i = 0; i < d.size(); ++i) d[i] = r.dims[i] - r.begin[i];
      return d;
    case Call::concat:
      for (const std::optional<Spec>& x : in.subspan(1)) d[axis] += x->dims[axis];
      return d;
    case Call::permute: return {d[0], d[2], d[1], d[3]};
    case Call::linear: return {d[0], d[1], d[2], in[1]->dims[3]};
    case Call::rotary: return {d[0], d[1], round_up(d[2]), d[3]};
    case Call::create_qkv_heads: return {d[0], r.heads, d[2], d[3] / (r.heads + 2 * r.kv_heads)};
    case Call::concat_heads: return {d[0], 1, d[2], d[1] * d[3]};
    case Call::embedding: return {1, 1, d[3], in[1]->dims[3]};
    default: return d;
  }
}

}  // namespace

std::vector<Spec> output_specs(const Request& r, InputSpecs in) {
  if (r.call == Call::copy) return {};
  Spec y{output_dims(r, in), in[0]->format, in[0]->layout, r.memory};
  if (r.call == Call::linear || r.call == Call::typecast) y.format = r.format;
  if (r.call == Call::embedding) y.format = in[1]->format, y.layout = Layout::tile;
  if (y.format == Format::bfp8 && !moves_whole_tiles(r, in)) y.format = Format::bf16;
  if (r.call != Call::create_qkv_heads) return {y};
  Spec kv = y;
  kv.dims[1] = r.kv_heads;
  return {y, kv, kv};
}

bool is_view(const Request& request, const Spec& x, const Spec& y) {
  if (request.call != Call::reshape || x.memory != y.memory || x.dims[3] != y.dims[3]) return false;
  return x.dims[2] == y.dims[2] || (x.dims[2] % kTile == 0 && y.dims[2] % kTile == 0);
}

WorkerOptions simulator_options(const std::string& folder) {
  WorkerOptions options{.python = folder + "/venv/bin/python"};
  std::ifstream file(folder + "/environment");
  ensure(file.good() && access(options.python.c_str(), X_OK) == 0, Fault::backend,
         "[ttnn] {} holds no TTNN library with a simulator (venv/bin/python and environment); run "
         "scripts/ttnn-sim {}",
         folder, folder);
  for (std::string line; std::getline(file, line);)
    if (!line.empty() && line[0] != '#') options.environment.push_back(line);
  return options;
}

}  // namespace tendon::tt
