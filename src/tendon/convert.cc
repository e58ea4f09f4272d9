// tendon::convert: pack, write, and prove that the file gives the same actions.
#include <chrono>
#include <filesystem>

#include "policy/converted_file.h"
#include "policy/policy.h"
#include "tendon/backends.h"
#include "tendon/tendon.h"
#include "tensor/check.h"

namespace tendon {
namespace {

// Something for every input of the model, the same on every machine.
Observation probe_observation(const PolicySpec& spec) {
  Observation o{.prompt = "self check",
                .state = std::vector<double>(static_cast<size_t>(spec.state_dim), 0.125)};
  for (const std::string& camera : robot_cameras(spec)) {
    Image image{48, 64, std::vector<uint8_t>(48 * 64 * 3)};
    for (size_t i = 0; i < image.rgb.size(); ++i)
      image.rgb.owned()[i] = static_cast<uint8_t>(i * 7 % 251);
    o.images[camera] = image;
  }
  return o;
}

}  // namespace

Converted convert(const std::string& model, const std::string& out, const OpenOptions& given) {
  ensure(given.backend == "cpu", Fault::usage, "only the cpu backend has a packed form, not {}",
         given.backend);
  const OpenOptions options = resolved(given);
  ensure(out.ends_with(".safetensors"), Fault::usage, "{}: expected OUT.safetensors", out);
  std::error_code ignored;
  ensure(!std::filesystem::equivalent(model, out, ignored), Fault::usage,
         "{} would overwrite what it is made from", out);
  const auto begin = std::chrono::steady_clock::now();
  OpenedModel opened = open_model(model, options);
  ensure(opened.precision.empty(), Fault::usage, "{} is already converted", model);
  const auto kernels = open_backend(options);
  Ops ops(*kernels);
  Weights weights = write_converted(out, opened, ops, {model, options.precision, version()});
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;

  const Observation observation = probe_observation(opened.spec);
  std::vector<double> expected;
  {
    Policy policy(ops, Model{opened.config, std::move(weights)}, std::move(opened.spec));
    expected = policy.infer(observation, {.steps = 1}).values;
  }
  Engine engine = Engine::open(out, {.isa = options.isa, .threads = options.threads});
  ensure(engine.infer(observation, {.steps = 1}).values == expected, Fault::verdict,
         "the actions of {} are not those of {}", out, model);
  return {static_cast<int64_t>(std::filesystem::file_size(out)), took.count()};
}

}  // namespace tendon
