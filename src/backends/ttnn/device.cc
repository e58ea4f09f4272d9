#include "backends/ttnn/device.h"

#include "backends/ttnn/tiles.h"
#include "tensor/check.h"

namespace tendon::tt {
namespace {

OpClass class_of(Call call) {
  switch (call) {
    case Call::linear: return OpClass::linear;
    case Call::attention: return OpClass::attention;
    case Call::layer_norm:
    case Call::rms_norm: return OpClass::norm;
    case Call::embedding: return OpClass::embedding;
    case Call::concat: return OpClass::concat;
    case Call::rotary:
    case Call::add:
    case Call::multiply:
    case Call::multiply_scalar: return OpClass::elementwise;
    default: return OpClass::utilities;
  }
}

// Of the padded shapes: what the device computes.
int64_t flops_of(const Request& r, std::span<const TensorRef> inputs) {
  if (r.call != Call::linear && r.call != Call::attention) return 0;
  const Dims x = padded(inputs[0]->spec()), y = padded(inputs[1]->spec());
  const int64_t rows = x[0] * x[1] * x[2];
  return r.call == Call::linear ? 2 * rows * x[3] * y[3] : 4 * rows * y[2] * x[3];
}

}  // namespace

DeviceTensor::~DeviceTensor() { device_.api_->release(output_.id); }

TensorRef Device::hold(const Output& output, const Spec& expected, std::string_view call) {
  auto held = std::make_shared<const DeviceTensor>(*this, output);
  const Spec& got = held->spec();
  ensure(padded(got) == padded(expected) && got.format == expected.format &&
             got.layout == expected.layout && got.memory == expected.memory,
         Fault::internal, "[{}] the device made {}, expected {}", call, to_string(got),
         to_string(expected));
  return held;
}

TensorRef Device::upload(const Spec& spec, std::span<const float> values) {
  const int64_t columns = spec.dims[3];
  return upload_rows(spec, [&](int64_t row, std::span<float> to) {
    std::ranges::copy(values.subspan(static_cast<size_t>(row * columns), to.size()), to.begin());
  });
}

TensorRef Device::upload_rows(const Spec& spec,
                              const std::function<void(int64_t row, std::span<float> to)>& rows) {
  std::vector<std::byte> bytes;
  if (!caps().shapes_only) bytes = pack_rows(spec, rows);
  TensorRef held = hold(api_->upload(spec, bytes), spec, "upload");
  if (calls_)
    calls_->push_back({.name = "upload",
                       .dtype = name(spec.format),
                       .bytes_up = byte_size(spec),
                       .module = serving_});
  return held;
}

std::vector<float> Device::download(const TensorRef& x) {
  std::vector<float> values(static_cast<size_t>(count(x->dims())));
  api_->download(x->id(), values);
  if (calls_)
    calls_->push_back({.name = "download",
                       .dtype = name(x->spec().format),
                       .bytes_down = byte_size(x->spec()),
                       .module = serving_});
  return values;
}

void Device::report(const Request& request, std::span<const TensorRef> inputs,
                    std::span<const Spec> outputs) {
  if (!calls_) return;
  DeviceCall call{.name = name(request.call),
                  .op_class = class_of(request.call),
                  .dtype = name(outputs[0].format),
                  .flops = flops_of(request, inputs),
                  .module = serving_};
  for (const TensorRef& x : inputs) call.bytes_read += x ? byte_size(x->spec()) : 0;
  for (const Spec& s : outputs) call.bytes_written += byte_size(s);
  if (request.call == Call::reshape) call.bytes_read = call.bytes_written = 0;  // a view
  calls_->push_back(call);
}

std::vector<TensorRef> Device::run_all(Request request, std::span<const TensorRef> inputs) {
  for (const TensorRef& x : inputs) request.inputs.push_back(x ? x->id() : 0);
  const std::vector<Spec> expected = output_specs(request, specs_of(inputs));
  const std::vector<Output> made = api_->run(request);
  ensure(made.size() == expected.size(), Fault::internal,
         "[{}] the device gave {} tensors, expected {}", name(request.call), made.size(),
         expected.size());
  std::vector<TensorRef> outputs;
  for (size_t i = 0; i < made.size(); ++i)
    outputs.push_back(hold(made[i], expected[i], name(request.call)));
  report(request, inputs, expected);
  return outputs;
}

void Device::copy(const TensorRef& x, const TensorRef& into) {
  api_->run({.call = Call::copy, .inputs = {x->id(), into->id()}});
  if (calls_)
    calls_->push_back({.name = "copy",
                       .dtype = name(x->spec().format),
                       .bytes_read = byte_size(x->spec()),
                       .bytes_written = byte_size(x->spec()),
                       .module = serving_});
}

TensorId Device::capture(const std::function<void()>& body) {
  api_->begin_trace();
  body();
  return api_->end_trace();
}

TensorRef Device::run(Request request, std::initializer_list<TensorRef> inputs) {
  return run_all(std::move(request), std::span(inputs.begin(), inputs.size()))[0];
}

std::vector<std::optional<Spec>> specs_of(std::span<const TensorRef> tensors) {
  std::vector<std::optional<Spec>> specs;
  for (const TensorRef& x : tensors) specs.push_back(x ? std::optional(x->spec()) : std::nullopt);
  return specs;
}

}  // namespace tendon::tt
