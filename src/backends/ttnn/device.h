// A TTNN device as the mapping layer sees it: tensors that free themselves, every answer checked
// against what was expected, every call counted.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/ttnn/tt_api.h"
#include "backends/ttnn/use.h"

namespace tendon::tt {

// A tensor on the device; the last owner frees it.
using TensorRef = std::shared_ptr<const Output>;

// Every method throws what TtApi throws, and Error(Fault::internal) when the device answers with
// another shape, format or memory than expected.
class Device {
 public:
  Device(std::unique_ptr<TtApi> api, Placement placement)
      : api_(std::move(api)), placement_(placement) {}

  const Caps& caps() const { return api_->caps(); }
  DeviceMemory memory() { return api_->memory(); }
  // The device as the buffers of this call find it: without the L1 that tensors take.
  Caps room(const Request& request, InputSpecs inputs) const;
  TensorRef upload(const Spec& spec, std::span<const float> values);  // logical values
  std::vector<float> download(const TensorRef& x);
  // `request` without its inputs; the first output, or all of them.
  TensorRef run(Request request, std::initializer_list<TensorRef> inputs);
  std::vector<TensorRef> run_all(Request request, std::span<const TensorRef> inputs);
  void copy(const TensorRef& x, const TensorRef& into);

  // What `body` asks of the device is recorded, run and can be run again; it may not upload.
  TensorId capture(const std::function<void()>& body);
  void replay(TensorId trace) { api_->replay_trace(trace); }
  void forget(TensorId trace) { api_->release(trace); }

  // Calls that move values. None is made where nothing changes.
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
  // `count` heads of `width` columns from column `first` on, as matrices of their own.
  TensorRef heads(const TensorRef& x, int64_t first, int64_t count, int64_t width);

  void report_calls(std::vector<DeviceCall>* to) { calls_ = to; }
  // From now on calls are made on behalf of this module, not of the op's own.
  void serve(std::optional<Module> module) { serving_ = module; }

 private:
  TensorRef hold(const Output& output, const Spec& expected, std::string_view call);
  Memory place(const Request& request, const Spec& output) const;
  int64_t bytes_per_core(const Spec& spec) const;
  void report(DeviceCall call);

  std::unique_ptr<TtApi> api_;
  Placement placement_;
  std::shared_ptr<int64_t> l1_held_ = std::make_shared<int64_t>(0);  // bytes of a core
  std::vector<DeviceCall>* calls_ = nullptr;
  std::optional<Module> serving_;
};

std::vector<std::optional<Spec>> specs_of(std::span<const TensorRef> tensors);

}  // namespace tendon::tt
