#include "backends/ttnn/masks.h"

namespace tendon::tt {
namespace {

template <class Sees>
Sight sight(int64_t rows, int64_t keys, const Sees& sees) {
  Sight s{rows, keys, std::vector<uint8_t>(static_cast<size_t>(rows * keys))};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < keys; ++k) s.seen[static_cast<size_t>(r * keys + k)] = sees(r, k);
  return s;
}

}  // namespace

Sight sees_first(std::span<const int32_t> visible, int64_t rows, int64_t keys, int64_t segments) {
  const int64_t group_rows = rows / segments, group_keys = keys / segments;
  return sight(rows, keys, [&](int64_t r, int64_t k) {
    const auto row = visible.size() == 1 ? 0 : static_cast<size_t>(r % group_rows);
    return r / group_rows == k / group_keys && k % group_keys < visible[row];
  });
}

std::vector<float> additive(const Sight& sight, std::span<const KeyPiece> pieces,
                            int64_t padded_rows, float hidden) {
  std::vector<float> mask;
  for (int64_t r = 0; r < padded_rows; ++r) {
    int64_t key = 0;
    for (const KeyPiece& piece : pieces)
      for (int64_t k = 0; k < piece.padded; ++k) {
        const bool seen = k < piece.rows && sight.at(r < sight.rows ? r : 0, key);
        mask.push_back(seen ? 0.f : hidden);
        key += k < piece.rows;
      }
  }
  return mask;
}

}  // namespace tendon::tt
