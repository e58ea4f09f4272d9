// A TTNN device as the mapping layer sees it: tensors that free themselves, every answer checked
// against what was expected, every call counted.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/ttnn/tt_api.h"
#include "ops/audit.h"

namespace tendon::tt {

class Device;

// A tensor on the device; the last owner frees it.
class DeviceTensor {
 public:
  DeviceTensor(Device& device, const Output& output) : device_(device), output_(output) {}
  ~DeviceTensor();
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  TensorId id() const { return output_.id; }
  const Spec& spec() const { return output_.spec; }
  const Dims& dims() const { return output_.spec.dims; }

 private:
  Device& device_;
  Output output_;
};
using TensorRef = std::shared_ptr<const DeviceTensor>;

class Device {
 public:
  explicit Device(std::unique_ptr<TtApi> api) : api_(std::move(api)) {}

  const Caps& caps() const { return api_->caps(); }

  // Every method throws what TtApi throws, and Error(Fault::internal) when the device answers with
  // another shape, format or memory than expected.
  TensorRef upload(const Spec& spec, std::span<const float> values);  // logical values
  TensorRef upload_rows(const Spec& spec,
                        const std::function<void(int64_t row, std::span<float> to)>& rows);
  std::vector<float> download(const TensorRef& x);
  // `request` without its inputs; the first output, or all of them.
  TensorRef run(Request request, std::initializer_list<TensorRef> inputs);
  std::vector<TensorRef> run_all(Request request, std::span<const TensorRef> inputs);
  void copy(const TensorRef& x, const TensorRef& into);

  // What `body` asks of the device is recorded, run and can be run again; it may not upload.
  TensorId capture(const std::function<void()>& body);
  void replay(TensorId trace) { api_->replay_trace(trace); }
  void forget(TensorId trace) { api_->release(trace); }

  void report_calls(std::vector<DeviceCall>* to) { calls_ = to; }
  // Calls made during the life of this object are on behalf of `module`, not of the op's own.
  class Serving {
   public:
    Serving(Device& device, Module module) : device_(device) { device.serving_ = module; }
    ~Serving() { device_.serving_.reset(); }
    Serving(const Serving&) = delete;
    Serving& operator=(const Serving&) = delete;

   private:
    Device& device_;
  };

 private:
  friend class DeviceTensor;
  TensorRef hold(const Output& output, const Spec& expected, std::string_view call);
  void report(const Request& request, std::span<const TensorRef> inputs,
              std::span<const Spec> outputs);

  std::unique_ptr<TtApi> api_;
  std::vector<DeviceCall>* calls_ = nullptr;
  std::optional<Module> serving_;
};

std::vector<std::optional<Spec>> specs_of(std::span<const TensorRef> tensors);

}  // namespace tendon::tt
