#include "backends/ttnn/layouts.h"

#include <algorithm>

#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

constexpr int64_t kPlacedAlone = 1 << 18;  // values that one thread brings to their places

// The stacked matrices [outputs, inputs] one after another.
std::vector<float> stacked(const WeightParts& parts, int64_t outputs, int64_t inputs) {
  std::vector<float> values(static_cast<size_t>(outputs * inputs));
  std::span<float> rest = values;
  for (const HostTensor& m : parts.matrices) {
    const auto size = static_cast<size_t>(m.shape.count());
    convert_to_f32(m, rest.first(size));
    rest = rest.subspan(size);
  }
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

TensorRef upload_table(Device& device, const HostTensor& table, int64_t inputs) {
  const Spec spec{.dims = {1, 1, table.shape[0], round_up(inputs)}, .layout = Layout::row_major};
  if (device.caps().shapes_only) return device.upload(spec, {});
  std::vector<float> values(static_cast<size_t>(count(spec.dims)));
  for (int64_t row = 0; row < table.shape[0]; ++row)
    convert_row_to_f32(table, row,
                       std::span(values).subspan(static_cast<size_t>(row * spec.dims[3]),
                                                 static_cast<size_t>(inputs)));
  return device.upload(spec, values);
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
  ensure(parts.packed.empty(), Fault::usage,
         "{} is packed for the cpu backend; the ttnn backend reads checkpoints", parts.name);
  auto w = std::make_shared<TtWeight>();
  int64_t outputs = 0;
  const int64_t inputs = parts.matrices[0].shape.count() / parts.matrices[0].shape[0];
  for (const HostTensor& m : parts.matrices) outputs += m.shape[0];
  w->inputs.width = parts.input_head_width;
  w->outputs.width = parts.output_head_width;
  if (parts.kind == WeightKind::table) {
    w->matrices.push_back(upload_table(device, parts.matrices[0], inputs));
    return w;
  }
  const int64_t pieces = parts.kind == WeightKind::gated ? 2 : 1, share = outputs / pieces;
  const Spec spec{.dims = {1, 1, w->inputs.count(inputs), w->outputs.count(share)},
                  .format = parts.kind == WeightKind::small ? Format::bf16 : format};
  std::vector<float> values;
  if (!device.caps().shapes_only) values = stacked(parts, outputs, inputs);
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
