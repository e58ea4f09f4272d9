#include "backends/ttnn/tt_api.h"

#include <fmt/format.h>

#include "backends/ttnn/tiles.h"
#include "tensor/tensor.h"

namespace tendon::tt {
namespace {

int64_t whole_tiles(int64_t n) { return (n + kTile - 1) / kTile * kTile; }

}  // namespace

Dims padded(const Spec& spec) {
  Dims dims = spec.dims;
  if (spec.layout == Layout::row_major) return dims;
  dims[2] = whole_tiles(dims[2]);
  dims[3] = whole_tiles(dims[3]);
  return dims;
}

int64_t byte_size(const Spec& spec) {
  const Dims dims = padded(spec);
  const int64_t count = dims[0] * dims[1] * dims[2] * dims[3];
  switch (spec.format) {
    case Format::bf16: return 2 * count;
    case Format::bfp8: return count / (kTile * kTile) * kBfp8TileBytes;
    case Format::f32:
    case Format::u32: return 4 * count;
  }
  return 0;
}

std::string to_string(const Spec& spec) {
  return fmt::format("{} {} {} {}", to_string(Shape(spec.dims)), name(spec.format),
                     spec.layout == Layout::tile ? "tile" : "row_major",
                     spec.memory == Memory::dram ? "dram" : "l1");
}

std::string_view name(Format format) {
  constexpr std::array<std::string_view, 4> kNames = {"bf16", "bfp8", "f32", "u32"};
  return kNames[static_cast<size_t>(format)];
}

std::string_view name(Call call) {
  constexpr std::array<std::string_view, kCallCount> kNames = {
      "reshape",          "slice",        "pad",        "concat",   "to_layout", "typecast",
      "to_memory",        "linear",       "layer_norm", "rms_norm", "attention", "rotary",
      "create_qkv_heads", "concat_heads", "embedding",  "add",      "multiply",  "add_scalar",
      "multiply_scalar",  "silu",         "gelu_tanh",  "sin",      "cos",       "copy"};
  return kNames[static_cast<size_t>(call)];
}

std::string_view name(Status status) {
  constexpr std::array<std::string_view, 6> kNames = {"ok",          "illegal",  "out of memory",
                                                      "unsupported", "deadline", "device lost"};
  return kNames[static_cast<size_t>(status)];
}

}  // namespace tendon::tt
