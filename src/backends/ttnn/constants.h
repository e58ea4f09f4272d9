// Tensors that stay on the device between calls: rotary tables, and attention masks put together on
// the device from constant tiles, so that a changing prompt uploads nothing.
#pragma once

#include <algorithm>
#include <list>
#include <map>
#include <vector>

#include "backends/ttnn/forms.h"

namespace tendon::tt {

// Keys as they lie on the device: pieces of `rows` real rows in `padded` device rows each.
struct KeyPiece {
  int64_t rows = 0, padded = 0;
  bool operator==(const KeyPiece&) const = default;
};

// Which keys a row sees. Rows and keys fall into `segments` equal groups that see only themselves;
// row r of a group sees the first visible[r] keys of its group. One entry alone holds for every
// row.
struct AttentionMask {
  std::vector<int32_t> visible;
  int64_t segments = 1;
  int64_t real_rows = 0, rows = 0;  // of the queries; rows: on the device
  std::vector<KeyPiece> pieces;
  bool operator==(const AttentionMask&) const = default;
};
// [rows, sum of padded]: 0 where a row sees a key, a large negative number elsewhere. Padding is
// never seen; rows of padding see what row 0 sees, so that their softmax stays finite.
std::vector<float> additive(const AttentionMask& mask);

class Constants {
 public:
  Constants(Device& device, Reshaper& reshaper) : device_(device), reshaper_(reshaper) {}

  // Cosines and sines [1, 1, rows, padded width] of positions first, first + 1, ...
  struct Rotary {
    TensorRef cosine, sine;
  };
  Rotary rotary(const HeadColumns& columns, int64_t first, int64_t rows);

  // [1, 1, rows, keys on the device], made once. Put together on the device where every real key is
  // seen, empty where there is no padding to hide either; uploaded otherwise.
  TensorRef mask(AttentionMask m);

 private:
  struct RotaryTable {
    int64_t positions = 0;
    TensorRef cosine, sine;
  };
  // A few results by what they were made for; the one unused for longest goes. One call needs at
  // most four masks: what its first run used is there for the second.
  template <class Key, class Value>
  class Recent {
   public:
    const Value* find(const Key& key) {
      const auto found = std::ranges::find(entries_, key, &std::pair<Key, Value>::first);
      if (found == entries_.end()) return nullptr;
      entries_.splice(entries_.begin(), entries_, found);
      return &found->second;
    }
    const Value& put(Key key, Value value) {
      if (entries_.size() >= kEntriesMax) entries_.pop_back();
      entries_.emplace_front(std::move(key), std::move(value));
      return entries_.front().second;
    }

   private:
    static constexpr size_t kEntriesMax = 8;
    std::list<std::pair<Key, Value>> entries_;
  };

  TensorRef put_together(std::span<const KeyPiece> pieces, int64_t rows, int64_t keys);
  void grow_rotary(RotaryTable& table, const HeadColumns& columns, int64_t positions);
  void grow_mask_tiles(int64_t rows, int64_t columns);

  Device& device_;
  Reshaper& reshaper_;
  std::map<int64_t, RotaryTable> tables_;  // by head width
  Recent<std::array<int64_t, 3>, Rotary> rotaries_;
  Recent<AttentionMask, TensorRef> masks_;
  TensorRef seen_,
      partly_;  // zeros; 32 columns of tiles of which the first 0, 1, .. 31 columns are seen
};

}  // namespace tendon::tt
