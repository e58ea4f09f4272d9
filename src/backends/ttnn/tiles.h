// How TTNN stores matrices: tiles of 32 x 32 as four 16 x 16 faces (top left, top right, bottom
// left, bottom right), each row by row; bf16, or bfp8_b in which 16 values share an exponent.
// Bit-equal to what the library writes (tests/data/ttnn).
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// Bytes of one bfp8_b tile: 64 exponents (one per face row, in face order), then 1024 of sign and 7
// magnitude bits. A magnitude m under exponent byte E is m * 2^(E - 133).
constexpr int64_t kBfp8TileBytes = 64 + 1024;

// The bytes that the device stores for row-major f32 `values` (the logical shape; padding becomes
// zero). bf16 rounds to nearest even; bfp8 rounds each magnitude to nearest even from f32, at most
// 127, f32 denormals count as zero. u32 takes the values as integers. byte_size(spec) bytes.
std::vector<std::byte> pack(const Spec& spec, std::span<const float> values);

// The same from an accessor of logical rows, for matrices too large to hold as f32: `row(r, to)`
// fills one logical row r of prod(dims[0..2]).
std::vector<std::byte> pack_rows(const Spec& spec,
                                 const std::function<void(int64_t, std::span<float>)>& row);

// Logical values back as f32.
std::vector<float> unpack(const Spec& spec, std::span<const std::byte> bytes);

}  // namespace tendon::tt
