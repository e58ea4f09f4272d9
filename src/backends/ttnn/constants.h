// Tensors that stay on the device between calls: rotary tables, matrices that move columns, and
// attention masks put together on the device from constant tiles, so that a changing prompt uploads
// nothing.
#pragma once

#include <algorithm>
#include <list>
#include <map>
#include <vector>

#include "backends/ttnn/layouts.h"

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
  explicit Constants(Device& device) : device_(device) {}

  // Cosines and sines [1, 1, rows, padded width] of positions first, first + 1, ...
  struct Rotary {
    TensorRef cosine, sine;
  };
  Rotary rotary(const HeadColumns& columns, int64_t first, int64_t rows);

  // 2π / period_i [1, 1, rows, width / 2] in f32, every row the same.
  TensorRef frequencies(const TimeEmbedding& e, int64_t rows);

  // [1, 1, 1, columns], every value the same.
  TensorRef row(float value, int64_t columns);

  // A matrix of zeros and ones: a product with it moves `columns` columns to their places among
  // padded heads (`spread`), or back, exactly.
  TensorRef mover(int64_t columns, const HeadColumns& heads, bool spread);

  // [1, 1, rows, keys on the device], made once. Put together on the device where every real key is
  // seen, empty where there is no padding to hide either; uploaded otherwise.
  TensorRef mask(AttentionMask m);

 private:
  // A few results by what they were made for; the one unused for longest goes. One call needs at
  // most four masks: what its first run used is there for the second.
  template <class Key, class Value>
  class Recent {
   public:
    template <class Make>
    const Value& get(const Key& key, const Make& make) {
      const auto found = std::ranges::find(entries_, key, &std::pair<Key, Value>::first);
      if (found != entries_.end()) {
        entries_.splice(entries_.begin(), entries_, found);
      } else {
        entries_.emplace_front(key, make());
        if (entries_.size() > kEntriesMax) entries_.pop_back();
      }
      return entries_.front().second;
    }

   private:
    static constexpr size_t kEntriesMax = 8;
    std::list<std::pair<Key, Value>> entries_;
  };

  TensorRef put_together(std::span<const KeyPiece> pieces, int64_t rows, int64_t keys);
  void grow_rotary(Rotary& table, const HeadColumns& columns, int64_t positions);
  void grow_mask_tiles(int64_t rows, int64_t columns);

  Device& device_;
  std::map<int64_t, Rotary> tables_;  // of positions 0, 1, ..., by head width
  Recent<std::array<int64_t, 3>, Rotary> rotaries_;
  Recent<AttentionMask, TensorRef> masks_;
  std::map<std::tuple<int64_t, int64_t, bool>, TensorRef> movers_;
  std::map<std::pair<float, int64_t>, TensorRef> rows_;
  std::map<std::tuple<int64_t, int64_t, double, double>, TensorRef> frequencies_;
  TensorRef seen_;    // zeros
  TensorRef partly_;  // 32 columns of tiles of which the first 0, 1, .. 31 columns are seen
};

}  // namespace tendon::tt
