#include "backends/ttnn/ttnn_weight.h"

#include "tensor/check.h"

namespace tendon::tt {
namespace {

// Rows [first, last) of the stacked matrices, as f32.
std::vector<float> rows_of(const WeightParts& parts, int64_t first, int64_t last, int64_t inputs) {
  std::vector<float> values(static_cast<size_t>((last - first) * inputs));
  int64_t start = 0;
  for (const HostTensor& m : parts.matrices) {
    const int64_t end = start + m.shape[0];
    for (int64_t r = std::max(first, start); r < std::min(last, end); ++r)
      convert_row_to_f32(m, r - start,
                         std::span(values).subspan(static_cast<size_t>((r - first) * inputs),
                                                   static_cast<size_t>(inputs)));
    start = end;
  }
  return values;
}

// W [outputs, inputs] as the device wants it: [inputs, outputs].
TensorRef upload_transposed(Device& device, const WeightParts& parts, int64_t first, int64_t last,
                            int64_t inputs, const TtWeight& w, Format format) {
  const int64_t outputs = last - first;
  const Spec spec{.dims = {1, 1, w.inputs.count(inputs), w.outputs.count(outputs)},
                  .format = format};
  if (device.caps().shapes_only) return device.upload(spec, {});
  const std::vector<float> values = rows_of(parts, first, last, inputs);
  std::vector<int64_t> input_at(static_cast<size_t>(spec.dims[2]), -1);
  for (int64_t i = 0; i < inputs; ++i) input_at[static_cast<size_t>(w.inputs.place(i))] = i;
  return device.upload_rows(spec, [&](int64_t row, std::span<float> to) {
    std::ranges::fill(to, 0.f);
    const int64_t input = input_at[static_cast<size_t>(row)];
    if (input < 0) return;
    for (int64_t o = 0; o < outputs; ++o)
      to[static_cast<size_t>(w.outputs.place(o))] = values[static_cast<size_t>(o * inputs + input)];
  });
}

TensorRef upload_table(Device& device, const HostTensor& table, int64_t inputs) {
  const Spec spec{.dims = {1, 1, table.shape[0], round_up(inputs)}, .layout = Layout::row_major};
  return device.upload_rows(spec, [&](int64_t row, std::span<float> to) {
    std::ranges::fill(to, 0.f);
    convert_row_to_f32(table, row, to.first(static_cast<size_t>(inputs)));
  });
}

}  // namespace

int64_t TtWeight::bytes() const {
  int64_t sum = bias ? byte_size(bias->spec()) : 0;
  for (const TensorRef& m : matrices) sum += byte_size(m->spec());
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
  const Format own = parts.kind == WeightKind::small ? Format::bf16 : format;
  const int64_t pieces = parts.kind == WeightKind::gated ? 2 : 1, share = outputs / pieces;
  for (int64_t i = 0; i < pieces; ++i)
    w->matrices.push_back(
        upload_transposed(device, parts, i * share, (i + 1) * share, inputs, *w, own));
  if (!parts.bias.empty()) {
    std::vector<float> bias(static_cast<size_t>(w->outputs.count(outputs)));
    for (int64_t o = 0; o < outputs; ++o)
      bias[static_cast<size_t>(w->outputs.place(o))] = parts.bias[static_cast<size_t>(o)];
    w->bias = device.upload({.dims = {1, 1, 1, std::ssize(bias)}}, bias);
  }
  return w;
}

}  // namespace tendon::tt
