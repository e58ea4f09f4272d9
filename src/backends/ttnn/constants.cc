#include "backends/ttnn/constants.h"

#include <cmath>

namespace tendon::tt {
namespace {

constexpr float kHidden = -1e9f;  // what a mask adds to the score of a key that is not seen

}  // namespace

// Half-split rotary embedding, θ = 10000, in double; both halves of a head hold the same values.
void Constants::grow_rotary(RotaryTable& table, const HeadColumns& columns, int64_t positions) {
  constexpr int64_t kAtLeast = 256;
  table.positions = round_up(std::max({kAtLeast, positions, 2 * table.positions}));
  const int64_t padded = columns.padded(), half = columns.width / 2;
  std::vector<float> cosine(static_cast<size_t>(table.positions * padded)), sine(cosine.size());
  for (int64_t p = 0; p < table.positions; ++p)
    for (int64_t j = 0; j < half; ++j) {
      const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(columns.width);
      const double angle = static_cast<double>(p) * std::pow(10000.0, exponent);
      for (const int64_t column : {j, padded / 2 + j}) {
        const auto at = static_cast<size_t>(p * padded + column);
        cosine[at] = static_cast<float>(std::cos(angle));
        sine[at] = static_cast<float>(std::sin(angle));
      }
    }
  const Spec spec{.dims = {1, 1, table.positions, padded}};
  table.cosine = device_.upload(spec, cosine);
  table.sine = device_.upload(spec, sine);
}

Constants::Rotary Constants::rotary(const HeadColumns& columns, int64_t first, int64_t rows) {
  const std::array<int64_t, 3> key{columns.width, first, rows};
  if (const Rotary* known = rotaries_.find(key)) return *known;
  RotaryTable& table = tables_[columns.width];
  if (first + rows > table.positions) grow_rotary(table, columns, first + rows);
  return rotaries_.put(key, {reshaper_.slice_axis(table.cosine, 2, first, first + rows),
                             reshaper_.slice_axis(table.sine, 2, first, first + rows)});
}

void Constants::grow_mask_tiles(int64_t rows, int64_t columns) {
  if (seen_ && seen_->dims()[2] >= rows && seen_->dims()[3] >= columns) return;
  if (seen_) {
    rows = std::max(rows, seen_->dims()[2]);
    columns = std::max(columns, seen_->dims()[3]);
  }
  seen_ = device_.upload({.dims = {1, 1, rows, columns}},
                         std::vector<float>(static_cast<size_t>(rows * columns)));
  const int64_t width = kTile * kTile;
  std::vector<float> partly(static_cast<size_t>(rows * width));
  for (size_t i = 0; i < partly.size(); ++i) {
    const int64_t column = static_cast<int64_t>(i) % width;
    if (column % kTile >= column / kTile) partly[i] = kHidden;
  }
  partly_ = device_.upload({.dims = {1, 1, rows, width}}, partly);
}

template <class Make>
Held Constants::mask(const Seen& key, const Make& make) {
  if (const Held* known = masks_.find(key)) return *known;
  const Device::Serving serving(device_, Module::attention);
  return masks_.put(key, make());
}

Held Constants::see_all(std::span<const KeyPiece> pieces, int64_t rows) {
  int64_t hidden_keys = 0, keys = 0;
  for (const KeyPiece& p : pieces) hidden_keys += p.padded - p.rows, keys += p.padded;
  if (hidden_keys == 0) return nullptr;
  return mask({{}, 1, rows, rows, {pieces.begin(), pieces.end()}},
              [&] { return put_together(pieces, rows, keys); });
}

Held Constants::put_together(std::span<const KeyPiece> pieces, int64_t rows, int64_t keys) {
  grow_mask_tiles(rows, keys);
  std::vector<Held> parts;
  int64_t whole = 0;  // columns of whole tiles that are seen and not yet in `parts`
  const auto part = [&](const Held& from, int64_t first, int64_t last) {
    parts.push_back(reshaper_.slice(from, {0, 0, 0, first}, {1, 1, rows, last}));
  };
  for (const KeyPiece& p : pieces) {
    whole += p.rows / kTile * kTile;
    if (p.rows % kTile == 0) continue;
    if (whole > 0) part(seen_, 0, whole);
    part(partly_, p.rows % kTile * kTile, (p.rows % kTile + 1) * kTile);
    whole = 0;
  }
  if (whole > 0) part(seen_, 0, whole);
  return reshaper_.concat(parts, 3);
}

Held Constants::see(const std::vector<int32_t>& visible, int64_t segments, int64_t real_rows,
                    std::span<const KeyPiece> pieces, int64_t rows) {
  int64_t keys = 0, padded_keys = 0;
  for (const KeyPiece& p : pieces) keys += p.rows, padded_keys += p.padded;
  return mask({visible, segments, real_rows, rows, {pieces.begin(), pieces.end()}}, [&] {
    return device_.upload(
        {.dims = {1, 1, rows, padded_keys}},
        additive(sees_first(visible, real_rows, keys, segments), pieces, rows, kHidden));
  });
}

}  // namespace tendon::tt
