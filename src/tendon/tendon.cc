// The front door.
#include "tendon/tendon.h"

#include <unistd.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "backends/cpu/cpu.h"
#include "backends/reference/reference.h"
#include "policy/converted_file.h"
#include "policy/images.h"
#include "policy/open_model.h"
#include "tendon/opened.h"
#include "tensor/check.h"
#include "tensor/parallel.h"
#include "tensor/stop_watch.h"

namespace tendon {
namespace {

// Weights that were packed in one precision cannot be used in another.
OpenOptions as_stored(const OpenOptions& given, const OpenedModel& opened) {
  if (opened.precision.empty()) return resolved(given);
  OpenOptions o = given;
  if (o.backend == "auto") o.backend = "cpu";
  ensure(o.backend == "cpu", Fault::usage,
         "this file is packed for the cpu backend; --backend {} needs the checkpoint", o.backend);
  ensure(o.precision.empty() || o.precision == opened.precision, Fault::usage,
         "this file is packed as {}; --precision {} needs the checkpoint", opened.precision,
         o.precision);
  o.precision = opened.precision;
  return o;
}

// What a backend of the host may plan with when nothing was said; of a device, anything.
int64_t host_memory(const OpenOptions& o) {
  if (o.backend != "cpu" && o.backend != "reference") return std::numeric_limits<int64_t>::max();
  return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

void check_fits(const MemoryPlan& plan, const OpenOptions& o) {
  const auto gb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  const bool given = o.max_memory > 0;
  const int64_t limit = given ? o.max_memory : host_memory(o);
  ensure(plan.total() <= limit, Fault::memory,
         "the model needs {:.2f} GB (weights {:.2f}, cache {:.2f}, activations {:.2f}), {} {:.2f};"
         " --precision int8 needs least",
         gb(plan.total()), gb(plan.weights), gb(plan.kv_cache), gb(plan.activations),
         given ? "--max-memory allows" : "this machine has", gb(limit));
}

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

OpenedEngine::OpenedEngine(const OpenOptions& o, std::unique_ptr<Kernels> given)
    : options(o),
      kernels(given ? std::move(given) : open_backend(o)),
      fallback(o.fallback.empty() ? nullptr : make_reference_backend({.threads = o.threads})),
      ops(*kernels, fallback.get()) {
  std::vector<Module> modules;
  for (const std::string& name : o.host_modules)
    for (int m = 0; m < kModuleCount; ++m)
      if (name == "all" || module_named(name) == static_cast<Module>(m))
        modules.push_back(static_cast<Module>(m));
  ops.keep_on_host(modules);
}

std::unique_ptr<OpenedEngine> open_engine(const OpenedModel& opened, const OpenOptions& given,
                                          std::unique_ptr<Kernels> kernels) {
  ensure(given.fallback.empty() || given.fallback == "reference", Fault::usage,
         "--fallback={}: only 'reference' can stand in for another backend", given.fallback);
  StopWatch watch;
  auto engine = std::make_unique<OpenedEngine>(as_stored(given, opened), std::move(kernels));
  const OpenOptions& o = engine->options;
  LoadProgress now{.plan = plan_memory(opened, o, keeps_table(o))};
  check_fits(now.plan, o);
  if (o.progress) o.progress(now);
  StopWatch loading;
  const auto prepared = [&](const WeightParts&, const Weight& w) {
    // The plan takes pi0.5's norms, which stay f32, for as narrow as the rest.
    now.bytes = std::min(now.bytes + w.native->bytes(), now.plan.weights);
    now.seconds += loading.lap_ms() / 1e3;
    if (o.progress) o.progress(now);
  };
  Weights weights =
      load_weights(engine->ops, *opened.weights, opened.config, {.prepared = prepared});
  engine->notes = opened.notes;
  if (given.backend == "auto")
    engine->notes.push_back(fmt::format("--backend auto is {} here", o.backend));
  engine->policy =
      std::make_unique<Policy>(engine->ops, Model{opened.config, std::move(weights)}, opened.spec);
  engine->load_ms = watch.lap_ms();
  return engine;
}

std::unique_ptr<OpenedEngine> open_engine(const std::string& model, const OpenOptions& given,
                                          std::unique_ptr<Kernels> kernels) {
  StopWatch watch;
  auto engine = open_engine(open_model(model, resolved(given)), given, std::move(kernels));
  engine->load_ms = watch.lap_ms();
  return engine;
}

Engine::Engine(std::unique_ptr<OpenedEngine> parts) : parts_(std::move(parts)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

Engine Engine::open(const std::string& model, const OpenOptions& options) {
  return Engine(open_engine(model, options));
}

Actions Engine::infer(const Observation& observation, const InferOptions& options) {
  return parts_->policy->infer(observation, options);
}

std::vector<Actions> Engine::infer_batch(std::span<const BatchRow> rows) {
  return parts_->policy->infer_batch(rows);
}

std::vector<float> Engine::velocity(const Observation& observation, std::span<const float> noisy,
                                    double t) {
  const Policy::Point point{{noisy.begin(), noisy.end()}, t};
  return std::move(parts_->policy->velocities(observation, {&point, 1})[0]);
}

std::vector<std::string> Engine::cameras() const { return robot_cameras(parts_->policy->spec()); }

std::vector<std::string> Engine::action_names() const {
  return parts_->policy->spec().action_names;
}

int64_t Engine::state_dim_min() const { return parts_->policy->spec().narrowest_state(); }
int64_t Engine::state_dim() const { return parts_->policy->spec().state_dim; }
int64_t Engine::horizon() const { return parts_->policy->config().horizon; }
int64_t Engine::model_dim() const { return parts_->policy->config().action_dim; }
int64_t Engine::steps() const { return parts_->policy->config().num_steps; }
std::vector<std::string> Engine::notes() const { return parts_->notes; }
std::string Engine::backend() const { return std::string(parts_->kernels->traits().name); }
std::string Engine::method() const { return parts_->kernels->traits().method; }
bool Engine::simulated() const { return parts_->kernels->traits().simulated; }
std::optional<DeviceMemory> Engine::device_memory() const {
  return parts_->kernels->device_memory();
}
double Engine::load_ms() const { return parts_->load_ms; }

std::vector<OpUse> Engine::op_use() const {
  std::vector<OpUse> use;
  for (int i = 0; i < kOpCount; ++i) {
    const OpCount& c = parts_->ops.coverage().of(static_cast<Op>(i));
    if (c.native_calls + c.fallback_calls > 0)
      use.push_back({std::string(name(static_cast<Op>(i))), c.native_calls, c.fallback_calls,
                     c.flops, c.bytes, c.seconds});
  }
  return use;
}

// Pack, write, and prove that the file gives the same actions.
Converted convert(const std::string& model, const std::string& out, const OpenOptions& given) {
  ensure(given.backend == "cpu", Fault::usage, "only the cpu backend has a packed form, not {}",
         given.backend);
  const OpenOptions options = resolved(given);
  ensure(out.ends_with(".safetensors"), Fault::usage, "{}: expected OUT.safetensors", out);
  std::error_code ignored;
  ensure(!std::filesystem::equivalent(model, out, ignored), Fault::usage,
         "{} would overwrite what it is made from", out);
  StopWatch watch;
  OpenedModel opened = open_model(model, options);
  ensure(opened.precision.empty(), Fault::usage, "{} is already converted", model);
  const auto kernels = open_backend(options);
  Ops ops(*kernels);
  Weights weights = write_converted(out, opened, ops, {model, options.precision, version()});
  const double seconds = watch.lap_ms() / 1e3;

  const Observation observation = probe_observation(opened.spec);
  std::vector<double> expected;
  {
    Policy policy(ops, Model{opened.config, std::move(weights)}, std::move(opened.spec));
    expected = policy.infer(observation, {.steps = 1}).values;
  }
  Engine engine = Engine::open(out, {.isa = options.isa, .threads = options.threads});
  ensure(engine.infer(observation, {.steps = 1}).values == expected, Fault::verdict,
         "the actions of {} are not those of {}", out, model);
  return {static_cast<int64_t>(std::filesystem::file_size(out)), seconds};
}

MachineLimits measure_limits(const OpenOptions& options) {
  const OpenOptions o = resolved(options);
  const CpuOptions cpu{
      .threads = o.threads,
      .precision = o.backend == "cpu" ? precision_named(o.precision) : Precision::f32,
      .isa = o.isa};
  return {describe_cpu(cpu), o.threads > 0 ? o.threads : hardware_threads(), cpu_peak(cpu),
          cpu_bandwidth(o.threads)};
}

Image read_image(const std::string& path) { return load_image(path); }

std::string describe(const std::string& model, const OpenOptions& options) {
  const OpenOptions o = resolved(options);
  return describe_model(open_model(model, o), o, keeps_table(o)).dump();
}

std::string tendon_json(const std::string& model, const OpenOptions& options) {
  return tendon_json(open_model(model, resolved(options))).dump(2);
}

std::vector<std::string> isas() { return cpu_isas(); }
std::string version() { return TENDON_VERSION; }

}  // namespace tendon
