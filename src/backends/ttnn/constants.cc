#include "backends/ttnn/constants.h"

#include <cmath>
#include <numbers>

namespace tendon::tt {
namespace {

constexpr float kHidden = -1e9f;  // what a mask adds to the score of a key that is not seen

}  // namespace

// Half-split rotary embedding, θ = 10000, in double; both halves of a head hold the same values.
void Constants::grow_rotary(Rotary& table, const HeadColumns& columns, int64_t positions) {
  constexpr int64_t kAtLeast = 256;
  const int64_t before = table.cosine ? table.cosine->dims()[2] : 0;
  positions = round_up(std::max({kAtLeast, positions, 2 * before}));
  const int64_t padded = columns.padded(), half = columns.width / 2;
  std::vector<float> cosine(static_cast<size_t>(positions * padded)), sine(cosine.size());
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t j = 0; j < half; ++j) {
      const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(columns.width);
      const double angle = static_cast<double>(p) * std::pow(10000.0, exponent);
      for (const int64_t column : {j, padded / 2 + j}) {
        const auto at = static_cast<size_t>(p * padded + column);
        cosine[at] = static_cast<float>(std::cos(angle));
        sine[at] = static_cast<float>(std::sin(angle));
      }
    }
  const Spec spec{.dims = {1, 1, positions, padded}};
  table.cosine = device_.upload(spec, cosine);
  table.sine = device_.upload(spec, sine);
}

Constants::Rotary Constants::rotary(const HeadColumns& columns, int64_t first, int64_t rows) {
  return rotaries_.get({columns.width, first, rows}, [&]() -> Rotary {
    Rotary& table = tables_[columns.width];
    if (!table.cosine || first + rows > table.cosine->dims()[2])
      grow_rotary(table, columns, first + rows);
    return {device_.slice_axis(table.cosine, 2, first, first + rows),
            device_.slice_axis(table.sine, 2, first, first + rows)};
  });
}

TensorRef Constants::frequencies(const TimeEmbedding& e, int64_t rows) {
  TensorRef& made = frequencies_[{rows, e.width, e.min_period, e.max_period}];
  if (!made) {
    const int64_t half = e.width / 2;
    std::vector<float> values(static_cast<size_t>(rows * half));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(2 * std::numbers::pi /
                                     e.period<double>(static_cast<int64_t>(i) % half));
    made = device_.upload({.dims = {1, 1, rows, half}, .format = Format::f32}, values);
  }
  return made;
}

TensorRef Constants::row(float value, int64_t columns) {
  TensorRef& row = rows_[{value, columns}];
  if (!row)
    row = device_.upload({.dims = {1, 1, 1, columns}},
                         std::vector<float>(static_cast<size_t>(columns), value));
  return row;
}

TensorRef Constants::mover(int64_t columns, const HeadColumns& heads, bool spread) {
  TensorRef& mover = movers_[{columns, heads.width, spread}];
  if (!mover) {
    const int64_t plain = round_up(columns), wide = heads.count(columns);
    const int64_t k = spread ? plain : wide, n = spread ? wide : plain;
    std::vector<float> ones(static_cast<size_t>(k * n));
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t from = spread ? j : heads.place(j), to = spread ? heads.place(j) : j;
      ones[static_cast<size_t>(from * n + to)] = 1.f;
    }
    mover = device_.upload({.dims = {1, 1, k, n}}, ones);
  }
  return mover;
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

std::vector<float> additive(const AttentionMask& m) {
  int64_t keys = 0;
  for (const KeyPiece& p : m.pieces) keys += p.rows;
  const int64_t group_rows = m.real_rows / m.segments, group_keys = keys / m.segments;
  std::vector<float> values;
  for (int64_t r = 0; r < m.rows; ++r) {
    const int64_t row = r < m.real_rows ? r : 0;
    const int32_t visible =
        m.visible[m.visible.size() == 1 ? 0 : static_cast<size_t>(row % group_rows)];
    int64_t key = 0;
    for (const KeyPiece& p : m.pieces)
      for (int64_t k = 0; k < p.padded; ++k) {
        const bool seen =
            k < p.rows && row / group_rows == key / group_keys && key % group_keys < visible;
        values.push_back(seen ? 0.f : kHidden);
        key += k < p.rows;
      }
  }
  return values;
}

TensorRef Constants::mask(AttentionMask m) {
  int64_t keys = 0, padded_keys = 0;
  for (const KeyPiece& p : m.pieces) keys += p.rows, padded_keys += p.padded;
  const bool sees_all = m.segments == 1 && m.visible.size() == 1 && m.visible[0] == keys;
  if (sees_all && keys == padded_keys) return nullptr;
  if (sees_all) m = {.visible = {}, .real_rows = m.rows, .rows = m.rows, .pieces = m.pieces};
  return masks_.get(m, [&] {
    device_.serve(Module::attention);
    TensorRef made = sees_all ? put_together(m.pieces, m.rows, padded_keys)
                              : device_.upload({.dims = {1, 1, m.rows, padded_keys}}, additive(m));
    device_.serve({});
    return made;
  });
}

TensorRef Constants::put_together(std::span<const KeyPiece> pieces, int64_t rows, int64_t keys) {
  grow_mask_tiles(rows, keys);
  std::vector<TensorRef> parts;
  int64_t whole = 0;  // columns of whole tiles that are seen and not yet in `parts`
  const auto part = [&](const TensorRef& from, int64_t first, int64_t last) {
    parts.push_back(device_.slice(from, {0, 0, 0, first}, {1, 1, rows, last}));
  };
  for (const KeyPiece& p : pieces) {
    whole += p.rows / kTile * kTile;
    if (p.rows % kTile == 0) continue;
    if (whole > 0) part(seen_, 0, whole);
    part(partly_, p.rows % kTile * kTile, (p.rows % kTile + 1) * kTile);
    whole = 0;
  }
  if (whole > 0) part(seen_, 0, whole);
  return device_.concat(parts, 3);
}

}  // namespace tendon::tt
