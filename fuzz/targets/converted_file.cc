// The header of a file of `tendon convert`, then everything up to a policy that could run. The
// input is the JSON; its tensors are zeros, since their numbers decide nothing before inference.
#include "policy/converted_file.h"

#include <algorithm>
#include <cstring>

#include "../target.h"
#include "backends/cpu/cpu.h"
#include "checkpoint/safetensors.h"
#include "policy/policy.h"

using namespace tendon;

namespace {

constexpr size_t kTensorBytesMax = 1 << 20;

// Length, header, zeros up to the last offset that it claims.
std::shared_ptr<const std::vector<std::byte>> file_with(std::string_view header) {
  uint64_t end = 0;
  for (const TensorEntry& entry : parse_safetensors_header(header, "fuzz.tendon").tensors)
    end = std::max(end, entry.end);
  std::vector<std::byte> file(8 + header.size() + std::min<uint64_t>(end, kTensorBytesMax));
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, sizeof(length));
  std::memcpy(file.data() + 8, header.data(), header.size());
  return std::make_shared<const std::vector<std::byte>>(std::move(file));
}

Precision precision_of(const OpenedModel& model) {
  for (const Precision p : {Precision::f32, Precision::bf16, Precision::int8})
    if (model.precision == name(p)) return p;
  return Precision::f32;
}

Observation black_scene(const Policy& policy) {
  Observation scene;
  scene.state.resize(static_cast<size_t>(policy.spec().state_dim), 0.5);
  scene.prompt = "pick up the red block";
  for (const std::string& camera : robot_cameras(policy.spec()))
    scene.images[camera] = {4, 4, std::vector<uint8_t>(48)};
  return scene;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::taken({Fault::checkpoint, Fault::usage, Fault::input}, [&] {
    const auto bytes = file_with({reinterpret_cast<const char*>(data), size});
    OpenedModel model = read_converted(SafetensorsFile::from_bytes(bytes, *bytes, "fuzz.tendon"));
    constexpr int64_t kPlanBytesMax = 64 << 20;  // as --max-memory would
    if (plan_memory(model, {}).total() > kPlanBytesMax) return;
    const auto kernels = make_cpu_backend({.threads = 1, .precision = precision_of(model)});
    Ops ops(*kernels);
    Weights weights = load_weights(ops, *model.weights, model.config);
    Policy policy(ops, {model.config, std::move(weights)}, std::move(model.spec));
    policy.inputs(black_scene(policy));
  });
  return 0;
}
