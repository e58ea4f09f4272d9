// The front door: the only place that knows the backends by name.
#include "tendon/tendon.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "backends/cpu/cpu.h"
#include "backends/reference/reference.h"
#include "policy/image_file.h"
#include "policy/open_model.h"
#include "policy/policy.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "tensor/parallel.h"

namespace tendon {
namespace {

CpuOptions cpu_options(const OpenOptions& o) {
  return {.threads = o.threads,
          .precision = o.precision.empty() ? Precision::bf16 : precision_named(o.precision),
          .isa = o.isa};
}

std::unique_ptr<Kernels> open_backend(const std::string& name, const OpenOptions& o) {
  if (name == "reference") {
    if (!o.precision.empty())
      ensure(precision_named(o.precision) != Precision::int8, Fault::usage,
             "--precision int8: the reference backend computes in f32 only");
    return make_reference_backend({.threads = o.threads});
  }
  if (name == "cpu") return make_cpu_backend(cpu_options(o));
  for (const char* known : {"cuda", "ttnn"})
    ensure(name != known, Fault::backend,
           "backend '{}' is not part of this build; it has: cpu, reference", name);
  fail(Fault::usage, "unknown backend '{}'; nearest: '{}'", name, nearest(name, backends()));
}

// Weights that were packed in one precision cannot be used in another.
OpenOptions as_stored(OpenOptions o, const OpenedModel& opened) {
  if (opened.precision.empty()) return o;
  ensure(o.backend == "cpu", Fault::usage,
         "this file is packed for the cpu backend; --backend {} needs the checkpoint", o.backend);
  ensure(o.precision.empty() || o.precision == opened.precision, Fault::usage,
         "this file is packed as {}; --precision {} needs the checkpoint", opened.precision,
         o.precision);
  o.precision = opened.precision;
  return o;
}

// Refuses a plan that is too large, and reports how far loading is.
class Watch {
 public:
  Watch(const OpenedModel& opened, const OpenOptions& o)
      : progress_(o.progress), now_{.plan = plan_memory(opened, o)} {
    const auto gb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
    ensure(o.max_memory <= 0 || now_.plan.total() <= o.max_memory, Fault::memory,
           "the model needs {:.2f} GB (weights {:.2f}, cache {:.2f}, activations {:.2f}), "
           "--max-memory allows {:.2f}; --precision int8 needs least",
           gb(now_.plan.total()), gb(now_.plan.weights), gb(now_.plan.kv_cache),
           gb(now_.plan.activations), gb(o.max_memory));
    if (progress_) progress_(now_);
  }

  void loaded(const Weight& w) const {
    now_.bytes += w.native->bytes();
    now_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    if (progress_) progress_(now_);
  }

 private:
  std::function<void(const LoadProgress&)> progress_;
  mutable LoadProgress now_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

struct Engine::Parts {
  std::unique_ptr<Kernels> kernels, fallback;
  Ops ops;
  std::vector<std::string> notes;
  std::string method;
  std::unique_ptr<Policy> policy;
  double load_ms = 0;

  explicit Parts(const OpenOptions& o)
      : kernels(open_backend(o.backend, o)),
        fallback(o.fallback.empty() ? nullptr : make_reference_backend({.threads = o.threads})),
        ops(*kernels, fallback.get()),
        method(o.backend == "cpu" ? describe_cpu(cpu_options(o)) : "") {}
};

Engine::Engine(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

Engine Engine::open(const std::string& model, const OpenOptions& options) {
  ensure(options.fallback.empty() || options.fallback == "reference", Fault::usage,
         "--fallback={}: only 'reference' can stand in for another backend", options.fallback);
  const auto begin = std::chrono::steady_clock::now();
  OpenedModel opened = open_model(model, options);
  auto parts = std::make_unique<Parts>(as_stored(options, opened));
  const Watch watch(opened, options);
  Weights weights = load_weights(
      parts->ops, *opened.weights, opened.config,
      {.prepared = [&watch](const WeightParts&, const Weight& w) { watch.loaded(w); }});
  parts->notes = std::move(opened.notes);
  parts->policy = std::make_unique<Policy>(parts->ops, Model{opened.config, std::move(weights)},
                                           std::move(opened.surroundings));
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  parts->load_ms = took.count();
  return Engine(std::move(parts));
}

Actions Engine::infer(const Observation& observation, const InferOptions& options) {
  return parts_->policy->infer(observation, options);
}

std::vector<std::string> Engine::cameras() const {
  return robot_cameras(parts_->policy->surroundings());
}

std::vector<std::string> Engine::action_names() const {
  return parts_->policy->surroundings().action_names;
}

int64_t Engine::state_dim() const { return parts_->policy->surroundings().state_dim; }
int64_t Engine::horizon() const { return parts_->policy->config().horizon; }
int64_t Engine::steps() const { return parts_->policy->config().num_steps; }
std::vector<std::string> Engine::notes() const { return parts_->notes; }
std::string Engine::backend() const { return std::string(parts_->kernels->name()); }
std::string Engine::method() const { return parts_->method; }
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

MachineLimits measure_limits(const OpenOptions& options) {
  CpuOptions cpu = cpu_options(options);
  if (options.backend == "reference") cpu.precision = Precision::f32;
  return {describe_cpu(cpu), options.threads > 0 ? options.threads : hardware_threads(),
          cpu_peak(cpu), cpu_bandwidth(options.threads)};
}

Image read_image(const std::string& path) { return load_image(path); }

std::string describe(const std::string& model, const OpenOptions& options) {
  return describe_model(open_model(model, options), options).dump();
}

std::vector<std::string> backends() { return {"cpu", "reference"}; }
std::vector<std::string> isas() { return cpu_isas(); }
std::string version() { return TENDON_VERSION; }

}  // namespace tendon
