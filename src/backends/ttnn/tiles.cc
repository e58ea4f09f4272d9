#include "backends/ttnn/tiles.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tensor/bf16.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

constexpr int64_t kFace = 16;             // rows and columns of one face
constexpr int64_t kFaceRows = 4 * kFace;  // of a tile, in face order: 16 values each
constexpr int64_t kBandValues = 1 << 18;  // below this many values one thread packs them all

// Where face row i of tile t begins in a band of 32 rows.
struct FaceRow {
  int64_t row, column;
};
FaceRow face_row(int64_t tile, int64_t i) {
  const int64_t face = i / kFace;
  return {face / 2 * kFace + i % kFace, tile * kTile + face % 2 * kFace};
}

// 16 values to their exponent byte and 16 bytes of sign and magnitude: the 24-bit significand is
// shifted right by 17 plus the distance to the block's exponent, to nearest even.
void pack_block(const float* from, std::byte* exponent, std::byte* to) {
  std::array<uint32_t, kFace> bits{};
  std::memcpy(bits.data(), from, sizeof(bits));
  uint32_t top = 0;
  for (const uint32_t u : bits) top = std::max(top, (u >> 23) & 0xFFu);
  *exponent = static_cast<std::byte>(top);
  for (size_t i = 0; i < bits.size(); ++i) {
    const uint32_t e = (bits[i] >> 23) & 0xFFu, shift = std::min(17 + top - e, 40u);
    const uint64_t m = e == 0 ? 0 : (bits[i] & 0x7FFFFFu) | 0x800000u;
    const uint64_t low = m & ((uint64_t{1} << shift) - 1), half = uint64_t{1} << (shift - 1);
    const uint64_t floor = m >> shift;
    const bool up = low > half || (low == half && (floor & 1) != 0);
    const uint64_t magnitude = std::min<uint64_t>(floor + (up ? 1 : 0), 127);
    to[i] = static_cast<std::byte>(magnitude == 0 ? 0 : (bits[i] >> 31 << 7) | magnitude);
  }
}

void unpack_block(std::byte exponent, const std::byte* from, float* to) {
  // 2^(E - 133) lies below the smallest normal float for E < 7: as a double it is exact.
  const double unit = std::bit_cast<double>(
      static_cast<uint64_t>(std::to_integer<int64_t>(exponent) - 133 + 1023) << 52);
  for (int64_t i = 0; i < kFace; ++i) {
    const auto b = std::to_integer<uint32_t>(from[i]);
    const auto value = static_cast<float>(unit * static_cast<double>(b & 0x7Fu));
    to[i] = (b & 0x80u) != 0 ? -value : value;
  }
}

// `count` values in a row, for the formats that store each value on its own.
void pack_values(Format format, const float* from, int64_t count, std::byte* to) {
  for (int64_t i = 0; i < count; ++i) {
    if (format == Format::bf16) {
      const uint16_t half = to_bf16(from[i]);
      std::memcpy(to + 2 * i, &half, sizeof(half));
    } else {
      const auto integer = static_cast<uint32_t>(from[i]);
      std::memcpy(to + 4 * i, &integer, sizeof(integer));
    }
  }
}

void unpack_values(Format format, const std::byte* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    if (format == Format::bf16) {
      uint16_t half = 0;
      std::memcpy(&half, from + 2 * i, sizeof(half));
      to[i] = from_bf16(half);
    } else {
      uint32_t integer = 0;
      std::memcpy(&integer, from + 4 * i, sizeof(integer));
      to[i] = static_cast<float>(integer);
    }
  }
}

// A tensor in bands: 32 rows of one matrix in tile layout (fewer at its end), one row otherwise.
struct Bands {
  explicit Bands(const Spec& s)
      : spec(s),
        tiled(s.layout == Layout::tile),
        per_matrix(tiled ? padded(s)[2] / kTile : s.dims[2]),
        count(s.dims[0] * s.dims[1] * per_matrix),
        columns(padded(s)[3]),
        bytes(count == 0 ? 0 : byte_size(s) / count) {
    ensure(tiled || s.format != Format::bfp8, Fault::internal, "{} is not a layout of bfp8",
           to_string(s));
  }
  int64_t first_row(int64_t band) const {
    return band / per_matrix * spec.dims[2] + band % per_matrix * (tiled ? kTile : 1);
  }
  int64_t rows(int64_t band) const {
    return tiled ? std::min(kTile, spec.dims[2] - band % per_matrix * kTile) : 1;
  }
  int threads() const { return count * columns < kBandValues ? 1 : hardware_threads(); }

  const Spec spec;
  const bool tiled;
  const int64_t per_matrix, count, columns, bytes;
};

// Calls body(value, exponent, stored) for every face row of a band of tiles: where its 16 values
// begin in [32, columns], and the bytes of its exponent (bfp8) and its values in the band.
template <class Body>
void each_face_row(const Bands& bands, const Body& body) {
  const bool shared = bands.spec.format == Format::bfp8;
  const int64_t bytes = tile_bytes(bands.spec.format);
  for (int64_t tile = 0; tile < bands.columns / kTile; ++tile)
    for (int64_t i = 0; i < kFaceRows; ++i) {
      const FaceRow at = face_row(tile, i);
      const int64_t stored = shared ? kFaceRows + i * kFace : i * bytes / kFaceRows;
      body(at.row * bands.columns + at.column, tile * bytes + i, tile * bytes + stored);
    }
}

// `band`: [32, columns], padding zero.
void pack_band(const Bands& bands, const float* band, std::byte* to) {
  const Format format = bands.spec.format;
  if (!bands.tiled) return pack_values(format, band, bands.columns, to);
  each_face_row(bands, [&](int64_t value, int64_t exponent, int64_t stored) {
    if (format == Format::bfp8)
      pack_block(band + value, to + exponent, to + stored);
    else
      pack_values(format, band + value, kFace, to + stored);
  });
}

void unpack_band(const Bands& bands, const std::byte* from, float* band) {
  const Format format = bands.spec.format;
  if (!bands.tiled) return unpack_values(format, from, bands.columns, band);
  each_face_row(bands, [&](int64_t value, int64_t exponent, int64_t stored) {
    if (format == Format::bfp8)
      unpack_block(from[exponent], from + stored, band + value);
    else
      unpack_values(format, from + stored, kFace, band + value);
  });
}

}  // namespace

std::vector<std::byte> pack(const Spec& spec, std::span<const float> values) {
  const int64_t columns = spec.dims[3];
  ensure(std::ssize(values) == count(spec.dims), Fault::internal, "packing {} values as {}",
         values.size(), to_string(spec));
  return pack_rows(spec, [&](int64_t r, std::span<float> to) {
    std::copy_n(values.begin() + r * columns, columns, to.begin());
  });
}

std::vector<std::byte> pack_rows(const Spec& spec,
                                 const std::function<void(int64_t, std::span<float>)>& row) {
  const Bands bands(spec);
  std::vector<std::byte> bytes(static_cast<size_t>(byte_size(spec)));
  parallel_for(bands.count, bands.threads(), [&](int64_t first, int64_t last) {
    std::vector<float> band(static_cast<size_t>(kTile * bands.columns));
    for (int64_t b = first; b < last; ++b) {
      const int64_t rows = bands.rows(b);
      std::fill(band.begin() + rows * bands.columns, band.end(), 0.0f);
      for (int64_t r = 0; r < rows; ++r)
        row(bands.first_row(b) + r,
            {band.data() + r * bands.columns, static_cast<size_t>(spec.dims[3])});
      pack_band(bands, band.data(), bytes.data() + b * bands.bytes);
    }
  });
  return bytes;
}

std::vector<float> unpack(const Spec& spec, std::span<const std::byte> bytes) {
  const Bands bands(spec);
  ensure(std::ssize(bytes) == byte_size(spec), Fault::internal, "{} bytes are not {}: {} expected",
         bytes.size(), to_string(spec), byte_size(spec));
  const int64_t columns = spec.dims[3];
  std::vector<float> values(static_cast<size_t>(count(spec.dims)));
  parallel_for(bands.count, bands.threads(), [&](int64_t first, int64_t last) {
    std::vector<float> band(static_cast<size_t>(kTile * bands.columns));
    for (int64_t b = first; b < last; ++b) {
      unpack_band(bands, bytes.data() + b * bands.bytes, band.data());
      for (int64_t r = 0; r < bands.rows(b); ++r)
        std::copy_n(band.begin() + r * bands.columns, columns,
                    values.begin() + (bands.first_row(b) + r) * columns);
    }
  });
  return values;
}

}  // namespace tendon::tt
