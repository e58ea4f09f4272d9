// Additive attention masks: 0 where a row sees a key, a large negative number elsewhere. On the
// device, keys and queries are padded to whole tiles; the padding is never seen.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tendon::tt {

// Keys as they lie on the device: pieces of `rows` real rows in `padded` device rows each.
struct KeyPiece {
  int64_t rows = 0, padded = 0;
  bool operator==(const KeyPiece&) const = default;
};

// Which keys a row sees; [rows, keys], true: seen.
struct Sight {
  int64_t rows = 0, keys = 0;
  std::vector<uint8_t> seen;
  bool at(int64_t row, int64_t key) const { return seen[static_cast<size_t>(row * keys + key)]; }
};
// Rows and keys fall into `segments` equal groups that see only themselves; row r of a group sees
// the first visible[r] keys of its group. One entry alone holds for every row.
Sight sees_first(std::span<const int32_t> visible, int64_t rows, int64_t keys,
                 int64_t segments = 1);

// [queries padded, sum of padded]: the mask of `sight` over keys that lie in `pieces`. Padding rows
// see what row 0 sees, so that their softmax stays finite.
std::vector<float> additive(const Sight& sight, std::span<const KeyPiece> pieces,
                            int64_t padded_rows, float hidden);

}  // namespace tendon::tt
