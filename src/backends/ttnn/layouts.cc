#include "backends/ttnn/layouts.h"

#include <algorithm>

#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

constexpr int64_t kPlacedAlone = 1 << 18;  // values that one thread brings to their places

// [rows, padded columns], or nothing where no number is computed.
std::vector<float> rows_of(const Device& device, const WeightParts& parts, int64_t padded) {
  if (device.caps().shapes_only) return {};
  std::vector<float> values(static_cast<size_t>(parts.outputs * padded));
  for (int64_t r = 0; r < parts.outputs; ++r)
    parts.read_row(r, std::span(values).subspan(static_cast<size_t>(r * padded),
                                                static_cast<size_t>(parts.inputs)));
  return values;
}

// `values` [outputs, inputs] as the device wants them: [inputs, outputs].
std::vector<float> transposed(std::span<const float> values, int64_t inputs, const TtWeight& w) {
  const int64_t outputs = std::ssize(values) / inputs, columns = w.outputs.count(outputs);
  std::vector<float> y(static_cast<size_t>(w.inputs.count(inputs) * columns));
  const int threads = std::ssize(y) < kPlacedAlone ? 1 : hardware_threads();
  parallel_for(inputs, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t o = 0; o < outputs; ++o)
        y[static_cast<size_t>(w.inputs.place(i) * columns + w.outputs.place(o))] =
            values[static_cast<size_t>(o * inputs + i)];
  });
  return y;
}

}  // namespace

Tensor make_tensor(const Shape& shape, std::vector<Piece> pieces, TileLayout layout,
                   HeadColumns columns) {
  auto* b = new TtBuffer;
  b->layout = layout;
  b->columns = columns;
  b->pieces = std::move(pieces);
  return {shape, b};
}

Tensor make_tensor(const Shape& shape, const TensorRef& held, TileLayout layout,
                   HeadColumns columns) {
  return make_tensor(shape, {{0, shape[0], held}}, layout, columns);
}

std::vector<float> gather(const Tensor& x, const TensorRef& held, std::span<const float> values) {
  const TtBuffer& b = buffer(x);
  const Dims& d = held->dims();
  const int64_t columns = x.columns(), padded = b.columns.padded();
  const bool heads = b.layout == TileLayout::heads;
  std::vector<float> out(static_cast<size_t>(x.shape().count()));
  const int64_t rows = std::min(x.rows(), d[0] * d[2]);  // a cache has room for more: zeros
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t group = r / d[2], row = r % d[2];  // groups are whole tiles of rows
      const int64_t place = b.columns.place(c);
      const int64_t head = heads ? place / padded : 0, column = heads ? place % padded : place;
      out[static_cast<size_t>(r * columns + c)] =
          values[static_cast<size_t>(((group * d[1] + head) * d[2] + row) * d[3] + column)];
    }
  return out;
}

int64_t TtWeight::bytes() const {
  int64_t sum = bias ? byte_size(bias->spec) : 0;
  for (const TensorRef& m : matrices) sum += byte_size(m->spec);
  return sum;
}

std::shared_ptr<const TtWeight> prepare_weight(Device& device, const WeightParts& parts,
                                               Format format) {
  auto w = std::make_shared<TtWeight>();
  const int64_t outputs = parts.outputs, inputs = parts.inputs;
  w->inputs.width = parts.input_head_width;
  w->outputs.width = parts.output_head_width;
  if (parts.kind == WeightKind::table) {
    const int64_t columns = round_up(inputs);
    w->matrices.push_back(
        device.upload({.dims = {1, 1, outputs, columns}, .layout = Layout::row_major},
                      rows_of(device, parts, columns)));
    return w;
  }
  const int64_t pieces = parts.kind == WeightKind::gated ? 2 : 1, share = outputs / pieces;
  const Spec spec{.dims = {1, 1, w->inputs.count(inputs), w->outputs.count(share)},
                  .format = parts.kind == WeightKind::small ? Format::bf16 : format};
  const std::vector<float> values = rows_of(device, parts, inputs);
  const size_t each = values.size() / static_cast<size_t>(pieces);
  for (size_t at = 0; std::ssize(w->matrices) < pieces; at += each)
    w->matrices.push_back(
        device.upload(spec, transposed(std::span(values).subspan(at, each), inputs, *w)));
  if (!parts.bias.empty()) {
    std::vector<float> bias(static_cast<size_t>(w->outputs.count(outputs)));
    for (int64_t o = 0; o < outputs; ++o)
      bias[static_cast<size_t>(w->outputs.place(o))] = parts.bias[static_cast<size_t>(o)];
    w->bias = device.upload({.dims = {1, 1, 1, std::ssize(bias)}}, bias);
  }
  return w;
}

}  // namespace tendon::tt
