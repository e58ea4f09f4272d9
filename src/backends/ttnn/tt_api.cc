#include "backends/ttnn/tt_api.h"

#include <fmt/format.h>

#include "backends/ttnn/tiles.h"
#include "tensor/tensor.h"

namespace tendon::tt {
Dims padded(const Spec& spec) {
  Dims dims = spec.dims;
  if (spec.layout == Layout::row_major) return dims;
  dims[2] = round_up(dims[2]);
  dims[3] = round_up(dims[3]);
  return dims;
}

int64_t byte_size(const Spec& spec) {
  const int64_t values = count(padded(spec));
  switch (spec.format) {
    case Format::bf16: return 2 * values;
    case Format::bfp8: return values / (kTile * kTile) * kBfp8TileBytes;
    case Format::u32: return 4 * values;
  }
  return 0;
}

int64_t tile_bytes(Format format) {
  return byte_size({.dims = {1, 1, kTile, kTile}, .format = format});
}

std::string to_string(const Spec& spec) {
  return fmt::format("{} {} {} {}", to_string(Shape(spec.dims)), name(spec.format),
                     spec.layout == Layout::tile ? "tile" : "row_major",
                     spec.memory == Memory::dram ? "dram" : "l1");
}

std::string_view name(Format format) {
  constexpr std::array<std::string_view, 3> kNames = {"bf16", "bfp8", "u32"};
  return kNames[static_cast<size_t>(format)];
}

std::string_view name(Call call) {
  constexpr std::array<std::string_view, kCallCount> kNames = {
      "reshape",          "slice",        "pad",       "concat",    "typecast",
      "linear",           "layer_norm",   "rms_norm",  "attention", "rotary",
      "create_qkv_heads", "concat_heads", "embedding", "add",       "multiply",
      "multiply_scalar",  "copy"};
  return kNames[static_cast<size_t>(call)];
}

std::string_view name(Status status) {
  constexpr std::array<std::string_view, 6> kNames = {"ok",          "illegal",  "out of memory",
                                                      "unsupported", "deadline", "device lost"};
  return kNames[static_cast<size_t>(status)];
}

}  // namespace tendon::tt
