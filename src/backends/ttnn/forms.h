// How a matrix of the model lies on the device, and the ways from one form to another. Device rows
// are padded to whole tiles: what lies in them is finite and never read as a result.
#pragma once

#include <map>
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

enum class Form : uint8_t {
  rows,    // [b, 1, r, c]: b groups of r rows below each other, c columns with a zero tail
  heads,   // [b, h, r, d]: one matrix per head
  spread,  // [b, 1, r, h d]: heads beside each other, each padded
  cache,   // pieces, each [1, h, r, d]
};

// Rows [first, first + rows) of a cache.
struct CachePiece {
  int64_t first = 0, rows = 0;
  TensorRef held;
};

struct TtBuffer final : Buffer {
  Form form = Form::rows;
  HeadColumns columns;  // heads, spread, cache
  TensorRef held;       // all but cache
  std::vector<CachePiece> pieces;
};

inline TtBuffer& buffer(const Tensor& x) { return *static_cast<TtBuffer*>(x.buffer()); }
Tensor make_tensor(const Shape& shape, TensorRef held, Form form = Form::rows,
                   HeadColumns columns = {});

// The calls that change a tensor's form. All on the device.
class Reshaper {
 public:
  explicit Reshaper(Device& device) : device_(device) {}

  TensorRef reshape(const TensorRef& x, const Dims& dims);
  TensorRef slice(const TensorRef& x, const Dims& begin, const Dims& end);
  TensorRef slice_axis(const TensorRef& x, size_t axis, int64_t first, int64_t last);
  TensorRef pad(const TensorRef& x, const Dims& dims);
  TensorRef concat(std::span<const TensorRef> parts, int axis);
  TensorRef typecast(const TensorRef& x, Format format);

  // `n` rows from `first` on (axis 2), padded to whole tiles; a single row stays one.
  TensorRef rows(const TensorRef& x, int64_t first, int64_t n);
  // The first rows[i] rows of each part below each other, padded to whole tiles.
  TensorRef stack(std::span<const TensorRef> parts, std::span<const int64_t> rows);
  // All groups of rows below each other: [1, 1, b r, c].
  TensorRef flat(const TensorRef& x);

  TensorRef as_rows(const Tensor& x);                         // rows form, one group
  TensorRef as_spread(const Tensor& x, HeadColumns columns);  // [b, 1, r, h d]
  TensorRef as_heads(const Tensor& x, int64_t heads, HeadColumns columns);
  TensorRef operand_row(const Tensor& x);  // [1, 1, 1, c], to be repeated

 private:
  // x [.., columns] with its columns moved to their places among padded heads, or back: a product
  // with a matrix of zeros and ones, exact.
  TensorRef move_columns(const TensorRef& x, int64_t columns, HeadColumns heads, bool spread);

  Device& device_;
  std::map<std::tuple<int64_t, int64_t, bool>, TensorRef> movers_;
};

// The values of the matrix that lies in the device as `x`, from its downloaded values.
std::vector<float> gather(const Tensor& x, const TensorRef& held, std::span<const float> values);

}  // namespace tendon::tt
