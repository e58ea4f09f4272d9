// How a matrix of the model or a checkpoint lies on the device, and the ways from one layout to
// another. Device rows are padded to whole tiles: what lies in them is finite and never read as a
// result.
#pragma once

#include <vector>

#include "backends/ttnn/device.h"
#include "tensor/tensor.h"

namespace tendon::tt {

// Where the columns of attention heads lie on the device: every head starts at a whole tile, and
// its two halves start at the two halves of its padded width, so that rotary embedding, which pairs
// column j with column j + width / 2, works on the padded head. The rest is zero.
struct HeadColumns {
  int64_t width = 0;  // 0: no heads, columns lie as they are

  int64_t padded() const { return round_up(width); }
  // Column `j` of all heads, on the device.
  int64_t place(int64_t j) const {
    if (width == 0) return j;
    const int64_t head = j / width, c = j % width, half = (width + 1) / 2;
    return head * padded() + (c < half ? c : padded() / 2 + c - half);
  }
  int64_t count(int64_t columns) const {  // columns on the device
    return width == 0 ? round_up(columns) : columns / width * padded();
  }
};

enum class TileLayout : uint8_t {
  rows,    // [b, 1, r, c]: b groups of r rows below each other, c columns with a zero tail
  spread,  // [b, 1, r, h d]: heads beside each other, each padded
  heads,   // pieces below each other, of a cache several, each [b, h, r, d]: one matrix per head
};

// Rows [first, first + rows) of a tensor.
struct Piece {
  int64_t first = 0, rows = 0;
  TensorRef held;
};

struct TtBuffer final : Buffer {
  TileLayout layout = TileLayout::rows;
  HeadColumns columns;        // spread, heads
  std::vector<Piece> pieces;  // one, but for heads
};

inline const TtBuffer& buffer(const Tensor& x) { return *static_cast<TtBuffer*>(x.buffer()); }
inline const TensorRef& held(const Tensor& x) { return buffer(x).pieces[0].held; }  // of one piece
Tensor make_tensor(const Shape& shape, std::vector<Piece> pieces, TileLayout layout,
                   HeadColumns columns);
Tensor make_tensor(const Shape& shape, const TensorRef& held, TileLayout layout = TileLayout::rows,
                   HeadColumns columns = {});

// A checkpoint's matrix on the device: transposed for the library's linear, both axes padded with
// zeros to whole tiles, the columns of attention heads moved to their places.
struct TtWeight final : PreparedWeight {
  std::vector<TensorRef> matrices;  // [1, 1, inputs, outputs]; gate and up apart; a table row-major
  TensorRef bias;                   // [1, 1, 1, outputs] or empty
  HeadColumns inputs, outputs;

  int64_t bytes() const override;
};
std::shared_ptr<const TtWeight> prepare_weight(Device& device, const WeightParts& parts,
                                               Format format);
inline const TtWeight& weight(const Weight& w) { return static_cast<const TtWeight&>(*w.native); }

// The values of the matrix that lies in the device as `held`, from its downloaded values.
std::vector<float> gather(const Tensor& x, const TensorRef& held, std::span<const float> values);

}  // namespace tendon::tt
