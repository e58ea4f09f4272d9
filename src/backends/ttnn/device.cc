#include "backends/ttnn/device.h"

#include "backends/ttnn/plan.h"
#include "tensor/check.h"

namespace tendon::tt {
namespace {

// Of the padded shapes: what the device computes.
int64_t flops_of(const Request& r, std::span<const TensorRef> inputs) {
  if (r.call != Call::linear && r.call != Call::attention) return 0;
  const Dims x = padded(inputs[0]->spec), y = padded(inputs[1]->spec);
  const int64_t rows = x[0] * x[1] * x[2];
  return r.call == Call::linear ? 2 * rows * x[3] * y[3] : 4 * rows * y[2] * x[3];
}

// Whether the next call, as a rule, is all that reads the result: no weight, no cache, no mask.
bool is_passed_on(Call call, Placement placement) {
  switch (call) {
    case Call::layer_norm:
    case Call::rms_norm: return placement != Placement::none;
    case Call::linear:
    case Call::attention:
    case Call::concat_heads:
    case Call::add:
    case Call::multiply:
    case Call::multiply_scalar: return placement == Placement::all;
    default: return false;
  }
}

}  // namespace

int64_t Device::bytes_per_core(const Spec& spec) const {
  return spec.memory == Memory::l1 ? tt::bytes_per_core(spec, caps().grid_x * caps().grid_y) : 0;
}

// A quarter of L1 at most, so that the call that reads it finds room. Single rows, such as those
// that depend on time alone, are kept by the dozen. Norms of a ragged width are padded next.
Memory Device::place(const Request& request, const Spec& output) const {
  Spec there = output;
  there.memory = Memory::l1;
  const bool whole = output.dims[2] > 1 && output.dims[3] % kTile == 0;
  const bool fits = *l1_held_ + bytes_per_core(there) <= caps().l1_bytes / 4;
  return whole && fits && is_passed_on(request.call, placement_) ? Memory::l1 : request.memory;
}

Caps Device::room(const Request& request, InputSpecs inputs) const {
  Spec output = output_specs(request, inputs)[0];
  output.memory = place(request, output);
  Caps room = caps();
  room.l1_bytes -= *l1_held_ + bytes_per_core(output);
  return room;
}

TensorRef Device::hold(const Output& output, const Spec& expected, std::string_view call) {
  const int64_t l1 = bytes_per_core(output.spec);
  *l1_held_ += l1;
  TensorRef held(new Output(output), [api = api_.get(), l1, all = l1_held_](const Output* gone) {
    *all -= l1;
    api->release(gone->id);
    delete gone;
  });
  const Spec& got = output.spec;
  ensure(padded(got) == padded(expected) && got.format == expected.format &&
             got.layout == expected.layout && got.memory == expected.memory,
         Fault::internal, "[{}] the device made {}, expected {}", call, to_string(got),
         to_string(expected));
  return held;
}

void Device::report(DeviceCall call) {
  if (!calls_) return;
  call.module = serving_;
  calls_->push_back(call);
}

TensorRef Device::upload(const Spec& spec, std::span<const float> values) {
  TensorRef held = hold(api_->upload(spec, values), spec, "upload");
  report({.name = "upload", .dtype = name(spec.format), .bytes_up = byte_size(spec)});
  return held;
}

std::vector<float> Device::download(const TensorRef& x) {
  std::vector<float> values(static_cast<size_t>(count(x->dims())));
  api_->download(x->id, values);
  const Spec& spec = x->spec;
  report({.name = "download", .dtype = name(spec.format), .bytes_down = byte_size(spec)});
  return values;
}

std::vector<TensorRef> Device::run_all(Request request, std::span<const TensorRef> inputs) {
  for (const TensorRef& x : inputs) request.inputs.push_back(x ? x->id : 0);
  request.memory = place(request, output_specs(request, specs_of(inputs))[0]);
  const std::vector<Spec> expected = output_specs(request, specs_of(inputs));
  const std::vector<Output> made = api_->run(request);
  const CallInfo& called = info(request.call);
  ensure(made.size() == expected.size(), Fault::internal,
         "[{}] the device gave {} tensors, expected {}", called.name, made.size(), expected.size());
  std::vector<TensorRef> outputs;
  DeviceCall call{.name = called.name,
                  .op_class = called.op_class,
                  .dtype = name(expected[0].format),
                  .flops = flops_of(request, inputs)};
  for (size_t i = 0; i < made.size(); ++i) {
    outputs.push_back(hold(made[i], expected[i], called.name));
    call.bytes_written += byte_size(expected[i]);
  }
  for (const TensorRef& x : inputs) call.bytes_read += x ? byte_size(x->spec) : 0;
  if (inputs[0] && is_view(request, inputs[0]->spec, expected[0]))
    call.bytes_read = call.bytes_written = 0;
  report(call);
  return outputs;
}

TensorRef Device::run(Request request, std::initializer_list<TensorRef> inputs) {
  return run_all(std::move(request), std::span(inputs.begin(), inputs.size()))[0];
}

void Device::copy(const TensorRef& x, const TensorRef& into) {
  api_->run({.call = Call::copy, .inputs = {x->id, into->id}});
  const int64_t bytes = byte_size(x->spec);
  report({.name = name(Call::copy),
          .dtype = name(x->spec.format),
          .bytes_read = bytes,
          .bytes_written = bytes});
}

TensorId Device::capture(const std::function<void()>& body) {
  api_->begin_trace();
  body();
  return api_->end_trace();
}

TensorRef Device::reshape(const TensorRef& x, const Dims& dims) {
  if (x->dims() == dims) return x;
  return run({.call = Call::reshape, .dims = dims, .memory = x->spec.memory}, {x});  // a view
}

TensorRef Device::slice(const TensorRef& x, const Dims& begin, const Dims& end) {
  if (begin == Dims{} && end == x->dims()) return x;
  return run({.call = Call::slice, .begin = begin, .dims = end}, {x});
}

TensorRef Device::slice_axis(const TensorRef& x, size_t axis, int64_t first, int64_t last) {
  Dims begin{}, end = x->dims();
  begin[axis] = first, end[axis] = last;
  return slice(x, begin, end);
}

TensorRef Device::pad(const TensorRef& x, const Dims& dims) {
  if (x->dims() == dims) return x;
  return run({.call = Call::pad, .dims = dims}, {x});
}

TensorRef Device::concat(std::span<const TensorRef> parts, int axis) {
  if (parts.size() == 1) return parts[0];
  return run_all({.call = Call::concat, .axis = axis}, parts)[0];
}

TensorRef Device::typecast(const TensorRef& x, Format format) {
  if (x->spec.format == format) return x;
  return run({.call = Call::typecast, .format = format}, {x});
}

TensorRef Device::rows(const TensorRef& x, int64_t first, int64_t n) {
  // The library cuts tiles open in bf16 only.
  const Format format = x->spec.format;
  if (format == Format::bfp8 && first % kTile != 0)
    return typecast(rows(typecast(x, Format::bf16), first, n), format);
  const int64_t wanted = n == 1 ? 1 : round_up(n);
  if (first + wanted <= x->dims()[2]) return slice_axis(x, 2, first, first + wanted);
  const TensorRef exact = slice_axis(x, 2, first, first + n);
  Dims dims = exact->dims();
  dims[2] = wanted;
  return pad(exact, dims);
}

TensorRef Device::stack(std::span<const TensorRef> parts, std::span<const int64_t> rows) {
  const Format format = parts[0]->spec.format;
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

TensorRef Device::flat(const TensorRef& x) {
  const Dims& d = x->dims();
  return reshape(x, {1, d[1], d[0] * d[2], d[3]});
}

TensorRef Device::heads(const TensorRef& x, int64_t first, int64_t count, int64_t width) {
  std::vector<TensorRef> each;
  for (int64_t at = first; at < first + count * width; at += width)
    each.push_back(slice_axis(x, 3, at, at + width));
  return concat(each, 1);
}

std::vector<std::optional<Spec>> specs_of(std::span<const TensorRef> tensors) {
  std::vector<std::optional<Spec>> specs;
  for (const TensorRef& x : tensors) specs.push_back(x ? std::optional(x->spec) : std::nullopt);
  return specs;
}

}  // namespace tendon::tt
