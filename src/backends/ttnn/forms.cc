#include "backends/ttnn/forms.h"

#include <algorithm>

#include "tensor/check.h"

namespace tendon::tt {

Tensor make_tensor(const Shape& shape, TensorRef held, Form form, HeadColumns columns) {
  auto* b = new TtBuffer;
  b->form = form;
  b->columns = columns;
  b->held = std::move(held);
  return {shape, b};
}

TensorRef Reshaper::reshape(const TensorRef& x, const Dims& dims) {
  if (x->dims() == dims) return x;
  return device_.run({.call = Call::reshape, .dims = dims}, {x});
}

TensorRef Reshaper::slice(const TensorRef& x, const Dims& begin, const Dims& end) {
  if (begin == Dims{} && end == x->dims()) return x;
  return device_.run({.call = Call::slice, .begin = begin, .dims = end}, {x});
}

TensorRef Reshaper::slice_axis(const TensorRef& x, size_t axis, int64_t first, int64_t last) {
  Dims begin{}, end = x->dims();
  begin[axis] = first, end[axis] = last;
  return slice(x, begin, end);
}

TensorRef Reshaper::pad(const TensorRef& x, const Dims& dims) {
  if (x->dims() == dims) return x;
  return device_.run({.call = Call::pad, .dims = dims}, {x});
}

TensorRef Reshaper::concat(std::span<const TensorRef> parts, int axis) {
  if (parts.size() == 1) return parts[0];
  return device_.run_all({.call = Call::concat, .axis = axis}, parts)[0];
}

TensorRef Reshaper::typecast(const TensorRef& x, Format format) {
  if (x->spec().format == format) return x;
  return device_.run({.call = Call::typecast, .format = format}, {x});
}

TensorRef Reshaper::rows(const TensorRef& x, int64_t first, int64_t n) {
  // The library cuts tiles open in bf16 only.
  const Format format = x->spec().format;
  if (format == Format::bfp8 && first % kTile != 0)
    return typecast(rows(typecast(x, Format::bf16), first, n), format);
  const int64_t wanted = n == 1 ? 1 : round_up(n);
  if (first + wanted <= x->dims()[2]) return slice_axis(x, 2, first, first + wanted);
  const TensorRef exact = slice_axis(x, 2, first, first + n);
  Dims dims = exact->dims();
  dims[2] = wanted;
  return pad(exact, dims);
}

TensorRef Reshaper::stack(std::span<const TensorRef> parts, std::span<const int64_t> rows) {
  const Format format = parts[0]->spec().format;
  bool ragged = false;
  for (size_t i = 0; i + 1 < parts.size(); ++i) ragged |= rows[i] % kTile != 0;
  std::vector<TensorRef> exact;
  int64_t total = 0, on_device = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool last = i + 1 == parts.size();
    const TensorRef part = typecast(parts[i], ragged ? Format::bf16 : format);
    exact.push_back(last ? part : slice_axis(part, 2, 0, rows[i]));
    total += rows[i];
    on_device += exact.back()->dims()[2];
  }
  TensorRef y = concat(exact, 2);
  Dims dims = y->dims();
  dims[2] = round_up(total);
  return typecast(on_device > dims[2] ? slice(y, {}, dims) : pad(y, dims), format);
}

TensorRef Reshaper::flat(const TensorRef& x) {
  const Dims& d = x->dims();
  return reshape(x, {1, d[1], d[0] * d[2], d[3]});
}

TensorRef Reshaper::move_columns(const TensorRef& x, int64_t columns, HeadColumns heads,
                                 bool spread) {
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
  return device_.run({.call = Call::linear}, {x, mover, nullptr});
}

TensorRef Reshaper::as_rows(const Tensor& x) {
  const TtBuffer& b = buffer(x);
  ensure(b.form == Form::rows || b.form == Form::spread, Fault::internal,
         "[ttnn] heads of {} are used as a matrix", to_string(x.shape()));
  if (b.form == Form::rows) return b.held;
  return move_columns(b.held, x.columns(), b.columns, false);
}

TensorRef Reshaper::as_spread(const Tensor& x, HeadColumns columns) {
  const TtBuffer& b = buffer(x);
  if (b.form == Form::spread && b.columns.width == columns.width) return b.held;
  TensorRef plain = as_rows(x);
  if (columns.width % kTile == 0) return plain;
  return move_columns(plain, x.columns(), columns, true);
}

TensorRef Reshaper::as_heads(const Tensor& x, int64_t heads, HeadColumns columns) {
  const TtBuffer& b = buffer(x);
  if (b.form == Form::heads) return b.held;
  if (b.form == Form::cache) {
    std::vector<TensorRef> pieces;
    for (const CachePiece& piece : b.pieces) pieces.push_back(piece.held);
    return concat(pieces, 2);
  }
  TensorRef wide = as_spread(x, columns);
  if (wide->dims()[2] == 1) wide = pad(wide, {1, 1, kTile, wide->dims()[3]});
  std::vector<TensorRef> parts;
  for (int64_t h = 0; h < heads; ++h)
    parts.push_back(slice_axis(wide, 3, h * columns.padded(), (h + 1) * columns.padded()));
  return concat(parts, 1);
}

TensorRef Reshaper::operand_row(const Tensor& x) { return slice_axis(as_rows(x), 2, 0, 1); }

std::vector<float> gather(const Tensor& x, const TensorRef& held, std::span<const float> values) {
  const TtBuffer& b = buffer(x);
  const Dims& d = held->dims();
  const int64_t columns = x.columns(), padded = b.columns.padded();
  std::vector<float> out(static_cast<size_t>(x.shape().count()));
  const int64_t rows = std::min(x.rows(), d[0] * d[2]);  // a cache has room for more: zeros
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t group = r / d[2], row = r % d[2];  // groups are whole tiles of rows
      const int64_t place = b.columns.place(c);
      const bool heads = b.form == Form::heads || b.form == Form::cache;
      const int64_t head = heads ? place / padded : 0, column = heads ? place % padded : place;
      out[static_cast<size_t>(r * columns + c)] =
          values[static_cast<size_t>(((group * d[1] + head) * d[2] + row) * d[3] + column)];
    }
  return out;
}

}  // namespace tendon::tt
