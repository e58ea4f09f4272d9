#include "backends/ttnn/fake_device.h"

#include <algorithm>
#include <map>
#include <new>
#include <optional>
#include <system_error>
#include <unordered_map>

#include "backends/ttnn/fake_ops.h"
#include "backends/ttnn/fake_rules.h"
#include "backends/ttnn/tiles.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon::tt {
namespace {

// Bytes in use of one kind of memory.
struct Ledger {
  std::string_view name;
  int64_t bytes_max = 0, used = 0, peak = 0;

  void charge(int64_t bytes) {
    ensure(used + bytes <= bytes_max, Fault::memory,
           "{} asked for {} bytes, but {} of {} are in use and {} available", name, bytes, used,
           bytes_max, bytes_max - used);
    used += bytes;
    peak = std::max(peak, used);
  }
};

// The memory of one tensor, shared by its views and by the traces that use it.
class Storage {
 public:
  Storage(Ledger& ledger, int64_t bytes) : ledger_(ledger), bytes_(bytes) { fill(); }
  ~Storage() { drop(); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void fill() {
    if (!charged_) ledger_.charge(bytes_);
    charged_ = true;
  }
  void drop() {
    if (charged_) ledger_.used -= bytes_;
    charged_ = false;
    values = {};
  }

  std::vector<float> values;  // logical, row-major, rounded to the tensor's format
  int64_t ids = 0;

 private:
  Ledger& ledger_;
  int64_t bytes_;
  bool charged_ = false;
};

struct FakeTensor {
  Spec spec;
  std::shared_ptr<Storage> storage;  // null: absent
};

// One recorded run: what it read and wrote, and which storages died right after it.
struct Step {
  Request request;
  std::vector<FakeTensor> inputs, outputs;
  std::vector<std::shared_ptr<Storage>> dropped;
};
using Trace = std::vector<Step>;

bool from_f32_accumulator(const Step& step) {
  switch (step.request.call) {
    case Call::linear:
    case Call::layer_norm:
    case Call::rms_norm:
    case Call::attention:
    case Call::rotary: return step.request.compute.f32_accumulate;
    default: return false;
  }
}

class FakeDevice final : public TtApi {
 public:
  explicit FakeDevice(const FakeOptions& options)
      : options_(options), threads_(options.threads > 0 ? options.threads : hardware_threads()) {
    const int64_t cores = options.grid_x * options.grid_y;
    dram_.bytes_max = options.dram_bytes;
    l1_.bytes_max = cores * std::max<int64_t>(0, options.l1_bytes - kL1Base);
    caps_ = {.grid_x = options.grid_x,
             .grid_y = options.grid_y,
             .l1_bytes = options.l1_bytes,
             .fast_dispatch = options.fast_dispatch,
             .simulated = true,
             .shapes_only = !options.compute,
             .description = "fake device"};
  }

  const Caps& caps() const override { return caps_; }
  Reply upload(const Spec& spec, std::span<const std::byte> bytes) override;
  Status download(TensorId x, std::span<float> to) override;
  void release(TensorId x) override;
  Reply run(const Request& request) override;
  Status begin_trace() override;
  Reply end_trace() override;
  Status replay_trace(TensorId trace) override;
  void release_trace(TensorId trace) override { traces_.erase(trace); }
  const std::string& last_error() const override { return error_; }

  FakeUse use() const { return {dram_.used, dram_.peak, l1_.used, l1_.peak, std::ssize(tensors_)}; }

 private:
  // Runs `call`, whose refusals are exceptions, and turns those into a status.
  template <class Body>
  Status attempt(const Body& call);
  void copy(const Request& request);
  Status refuse(Status status, std::string error);
  FakeTensor find(const Request& request, size_t input) const;
  FakeTensor create(const Spec& spec);
  Output name_tensor(const FakeTensor& tensor);
  Step prepare(const Request& request);
  void execute(Step& step);

  FakeOptions options_;
  int threads_;
  Caps caps_;
  Ledger dram_{"DRAM"}, l1_{"L1"};  // outlive every Storage below
  std::unordered_map<TensorId, FakeTensor> tensors_;
  std::map<TensorId, Trace> traces_;
  std::optional<Trace> recording_;
  TensorId next_ = 1;  // never used again, so that a stale id is noticed
  int64_t runs_ = 0;
  bool lost_ = false;
  std::string error_;
};

Status FakeDevice::refuse(Status status, std::string error) {
  error_ = std::move(error);
  lost_ |= status == Status::device_lost || status == Status::deadline;
  return status;
}

template <class Body>
Status FakeDevice::attempt(const Body& call) {
  if (lost_) return Status::device_lost;
  try {
    call();
    return Status::ok;
  } catch (const Error& e) {
    return refuse(e.fault() == Fault::memory ? Status::out_of_memory : Status::illegal, e.what());
  } catch (const std::bad_alloc&) {
    return refuse(Status::out_of_memory, "the fake device's host has no memory left");
  } catch (const std::exception& e) {  // no thread could be started
    return refuse(Status::device_lost, e.what());
  }
}

FakeTensor FakeDevice::create(const Spec& spec) {
  if (spec.memory == Memory::dram) return {spec, std::make_shared<Storage>(dram_, byte_size(spec))};
  const int64_t cores = options_.grid_x * options_.grid_y;
  return {spec, std::make_shared<Storage>(l1_, cores * bytes_per_core(spec, cores))};
}

Output FakeDevice::name_tensor(const FakeTensor& tensor) {
  ++tensor.storage->ids;
  tensors_[next_] = tensor;
  return {next_++, tensor.spec};
}

Reply FakeDevice::upload(const Spec& spec, std::span<const std::byte> bytes) {
  Reply reply;
  reply.status = attempt([&] {
    ensure(!recording_, Fault::backend, "[upload] got {} while a trace is captured, expected none",
           to_string(spec));
    check_spec(spec);
    ensure(!options_.compute || std::ssize(bytes) == byte_size(spec), Fault::backend,
           "[upload] got {} bytes for {}, expected {}", bytes.size(), to_string(spec),
           byte_size(spec));
    const FakeTensor tensor = create(spec);
    if (options_.compute) tensor.storage->values = unpack(spec, bytes);
    reply.outputs.push_back(name_tensor(tensor));
  });
  return reply;
}

Status FakeDevice::download(TensorId x, std::span<float> to) {
  return attempt([&] {
    ensure(!recording_, Fault::backend, "[download] got a call while a trace is captured");
    const auto at = tensors_.find(x);
    ensure(at != tensors_.end(), Fault::backend,
           "[download] got id {}, expected a tensor that was not released", x);
    ensure(std::ssize(to) == count(at->second.spec.dims), Fault::backend,
           "[download] got room for {} values, expected those of {}", to.size(),
           to_string(at->second.spec));
    if (options_.compute)
      std::ranges::copy(at->second.storage->values, to.begin());
    else
      std::ranges::fill(to, 0.0f);
  });
}

// A storage that only a trace still knows stays, except one that was also made during the capture:
// the library hands its memory to the next tensor, and a replay makes it again.
void FakeDevice::release(TensorId x) {
  const auto at = tensors_.find(x);
  if (at == tensors_.end()) return;
  const std::shared_ptr<Storage> storage = at->second.storage;
  tensors_.erase(at);
  if (--storage->ids > 0 || !recording_) return;
  const bool made_here = std::ranges::any_of(*recording_, [&](const Step& step) {
    return std::ranges::any_of(step.outputs,
                               [&](const FakeTensor& y) { return y.storage == storage; });
  });
  if (!made_here) return;
  storage->drop();
  recording_->back().dropped.push_back(storage);
}

FakeTensor FakeDevice::find(const Request& request, size_t input) const {
  const TensorId wanted = request.inputs[input];
  if (wanted == 0) return {};
  const auto at = tensors_.find(wanted);
  ensure(at != tensors_.end(), Fault::backend,
         "[{}] input {} is id {}, expected a tensor that was not released", name(request.call),
         input, wanted);
  return at->second;
}

Step FakeDevice::prepare(const Request& request) {
  Step step{.request = request};
  std::vector<std::optional<Spec>> specs;
  for (size_t i = 0; i < request.inputs.size(); ++i) {
    const FakeTensor& x = step.inputs.emplace_back(find(request, i));
    specs.push_back(x.storage ? std::optional(x.spec) : std::nullopt);
  }
  // Tensors in L1 lie on all cores alike and leave less for the buffers of a kernel.
  const int64_t cores = options_.grid_x * options_.grid_y;
  const CoreGrid grid{options_.grid_x, options_.grid_y, options_.l1_bytes - l1_.used / cores};
  for (const Spec& y : output_specs(request, specs, grid)) {
    const FakeTensor& x = step.inputs[0];
    step.outputs.push_back(is_view(request, x.spec, y) ? FakeTensor{y, x.storage} : create(y));
  }
  return step;
}

void FakeDevice::execute(Step& step) {
  for (const FakeTensor& y : step.outputs) y.storage->fill();
  if (!options_.compute || step.outputs[0].storage == step.inputs[0].storage) return;
  std::vector<Operand> operands;
  for (const FakeTensor& x : step.inputs) {
    operands.push_back({.spec = x.spec, .values = {}});
    if (x.storage) operands.back().values = x.storage->values;
  }
  std::vector<Spec> specs;
  for (const FakeTensor& y : step.outputs) specs.push_back(y.spec);
  std::vector<std::vector<float>> results = compute(step.request, operands, specs, threads_);
  const bool from_f32 = from_f32_accumulator(step);
  for (size_t i = 0; i < results.size(); ++i) {
    round_to_format(specs[i], from_f32, results[i], threads_);
    step.outputs[i].storage->values = std::move(results[i]);
  }
}

// Into memory that is there already: between replays, never while a trace is captured.
void FakeDevice::copy(const Request& request) {
  ensure(!recording_, Fault::backend, "[copy] got a call while a trace is captured");
  ensure(request.inputs.size() == 2, Fault::backend, "[copy] got {} inputs, expected 2",
         request.inputs.size());
  const FakeTensor x = find(request, 0), y = find(request, 1);
  ensure(x.spec == y.spec, Fault::backend, "[copy] got {} into {}, expected the same",
         to_string(x.spec), to_string(y.spec));
  y.storage->values = x.storage->values;
}

Reply FakeDevice::run(const Request& request) {
  Reply reply;
  if (!lost_ && ++runs_ == options_.fail_at) {
    reply.status = refuse(options_.fail_status,
                          fmt::format("[{}] run {} was told to fail with {}", name(request.call),
                                      runs_, name(options_.fail_status)));
    return reply;
  }
  reply.status = attempt([&] {
    if (request.call == Call::copy) return copy(request);
    Step step = prepare(request);
    execute(step);
    for (const FakeTensor& y : step.outputs) reply.outputs.push_back(name_tensor(y));
    if (recording_) recording_->push_back(std::move(step));
  });
  return reply;
}

Status FakeDevice::begin_trace() {
  if (lost_) return Status::device_lost;
  if (!options_.fast_dispatch)
    return refuse(Status::unsupported, "[begin_trace] traces need fast dispatch");
  return attempt([&] {
    ensure(!recording_, Fault::backend, "[begin_trace] a trace is already being captured");
    recording_.emplace();
  });
}

Reply FakeDevice::end_trace() {
  Reply reply;
  reply.status = attempt([&] {
    ensure(recording_.has_value(), Fault::backend, "[end_trace] no trace is being captured");
    traces_[next_] = std::move(*recording_);
    recording_.reset();
    reply.outputs.push_back({.id = next_++, .spec = {}});
  });
  return reply;
}

Status FakeDevice::replay_trace(TensorId trace) {
  return attempt([&] {
    ensure(!recording_, Fault::backend, "[replay_trace] a trace is being captured");
    const auto at = traces_.find(trace);
    ensure(at != traces_.end(), Fault::backend,
           "[replay_trace] got id {}, expected a trace that was not released", trace);
    for (Step& step : at->second) {
      execute(step);
      for (const std::shared_ptr<Storage>& storage : step.dropped) storage->drop();
    }
  });
}

}  // namespace

std::unique_ptr<TtApi> open_fake_device(const FakeOptions& options) {
  return std::make_unique<FakeDevice>(options);
}

FakeUse fake_use(const TtApi& device) {
  const auto* fake = dynamic_cast<const FakeDevice*>(&device);
  ensure(fake != nullptr, Fault::internal, "this is not the fake device");
  return fake->use();
}

}  // namespace tendon::tt
