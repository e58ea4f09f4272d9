// A model of a TTNN device in this process: the library's rules, formats, memory and traces.
#include "backends/ttnn/fake_device.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "backends/ttnn/plan.h"
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
           "[ttnn] out of memory: {} asked for {} bytes, but {} of {} are in use and {} available",
           name, bytes, used, bytes_max, bytes_max - used);
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

class FakeDevice final : public TtApi {
 public:
  explicit FakeDevice(const FakeOptions& options)
      : compute_(options.compute),
        threads_(options.threads > 0 ? options.threads : hardware_threads()),
        caps_{.grid_x = options.grid_x,
              .grid_y = options.grid_y,
              .l1_bytes = options.l1_bytes,
              .fast_dispatch = options.fast_dispatch,
              .simulated = true,
              .shapes_only = !options.compute,
              .description = "fake device",
              .arch = "wormhole_b0",
              .version = "0.81.1, as the model has it",
              .dram_bytes = options.dram_bytes},
        dram_{"DRAM", options.dram_bytes},
        l1_{"L1", cores() * std::max<int64_t>(0, options.l1_bytes - kL1Base)} {}

  const Caps& caps() const override { return caps_; }
  Output upload(const Spec& spec, std::span<const float> values) override {
    expect_no_capture("upload");
    check_spec(spec);
    ensure(!compute_ || std::ssize(values) == count(spec.dims), Fault::internal,
           "[upload] got {} values, expected those of {}", values.size(), to_string(spec));
    const FakeTensor tensor = create(spec);
    if (compute_) tensor.storage->values = rounded_for_upload(spec, values, threads_);
    return name_tensor(tensor);
  }

  void download(TensorId x, std::span<float> to) override {
    expect_no_capture("download");
    const FakeTensor& tensor = find("download", x);
    ensure(std::ssize(to) == count(tensor.spec.dims), Fault::internal,
           "[download] got room for {} values, expected those of {}", to.size(),
           to_string(tensor.spec));
    std::ranges::fill(to, 0.0f);
    std::ranges::copy(tensor.storage->values, to.begin());
  }

  std::vector<Output> run(const Request& request) override {
    Step step = prepare(request);
    if (request.call == Call::copy) return copy(step), std::vector<Output>{};
    execute(step);
    std::vector<Output> outputs;
    for (const FakeTensor& y : step.outputs) outputs.push_back(name_tensor(y));
    if (recording_) recording_->push_back(std::move(step));
    return outputs;
  }

  void begin_trace() override {
    ensure(caps_.fast_dispatch, Fault::backend, "[begin_trace] traces need fast dispatch");
    expect_no_capture("begin_trace");
    recording_.emplace();
  }

  TensorId end_trace() override {
    ensure(recording_.has_value(), Fault::internal, "[end_trace] no trace is being captured");
    traces_[next_] = *std::exchange(recording_, std::nullopt);
    return next_++;
  }

  void replay_trace(TensorId trace) override {
    expect_no_capture("replay_trace");
    const auto at = traces_.find(trace);
    ensure(at != traces_.end(), Fault::internal,
           "[replay_trace] got id {}, expected a trace that was not released", trace);
    for (Step& step : at->second) {
      execute(step);
      for (const std::shared_ptr<Storage>& storage : step.dropped) storage->drop();
    }
  }

  // A storage that only a trace still knows stays, except one that was also made during the
  // capture: the library hands its memory to the next tensor, and a replay makes it again.
  void release(TensorId x) noexcept override {
    traces_.erase(x);
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

  DeviceMemory memory() override {
    return {.dram = dram_.used,
            .dram_size = dram_.bytes_max,
            .l1 = l1_.used / cores(),
            .l1_size = caps_.l1_bytes,
            .dram_peak = dram_.peak,
            .l1_peak = l1_peak_};
  }

 private:
  int64_t cores() const { return caps_.grid_x * caps_.grid_y; }
  void expect_no_capture(std::string_view call) const {
    ensure(!recording_, Fault::internal, "[{}] got a call while a trace is captured", call);
  }
  const FakeTensor& find(std::string_view call, TensorId x) const {
    const auto at = tensors_.find(x);
    ensure(at != tensors_.end(), Fault::internal,
           "[{}] got id {}, expected a tensor that was not released", call, x);
    return at->second;
  }

  FakeTensor create(const Spec& spec) {
    if (spec.memory == Memory::dram)
      return {spec, std::make_shared<Storage>(dram_, byte_size(spec))};
    return {spec, std::make_shared<Storage>(l1_, cores() * bytes_per_core(spec, cores()))};
  }

  Output name_tensor(const FakeTensor& tensor) {
    ++tensor.storage->ids;
    tensors_[next_] = tensor;
    return {next_++, tensor.spec};
  }

  Step prepare(const Request& request) {
    Step step{.request = request, .inputs = {}, .outputs = {}, .dropped = {}};
    std::vector<std::optional<Spec>> specs;
    for (const TensorId x : request.inputs) {
      step.inputs.push_back(x == 0 ? FakeTensor{} : find(name(request.call), x));
      specs.push_back(x == 0 ? std::nullopt : std::optional(step.inputs.back().spec));
    }
    // Tensors in L1 lie on all cores alike and leave less for the buffers of a kernel.
    check_legal(request, specs, room());
    for (const Spec& y : output_specs(request, specs)) {
      check_spec(y);
      const FakeTensor& x = step.inputs[0];
      step.outputs.push_back(is_view(request, x.spec, y) ? FakeTensor{y, x.storage} : create(y));
    }
    // The library lays the output before it sets buffers aside.
    if (std::ranges::any_of(step.outputs, in_l1)) check_legal(request, specs, room());
    l1_peak_ = std::max(l1_peak_, caps_.l1_bytes - room().l1_bytes + buffers(request, specs));
    return step;
  }

  Caps room() const {
    Caps room = caps_;
    room.l1_bytes -= l1_.used / cores();
    return room;
  }
  static bool in_l1(const FakeTensor& y) { return y.spec.memory == Memory::l1; }
  // What the call takes of a core's L1, where it is known.
  int64_t buffers(const Request& request, InputSpecs specs) const {
    const bool planned =
        request.call == Call::attention ||
        (request.call == Call::linear && request.blocks.kind != Blocks::Kind::library);
    return planned ? kL1Base + l1_bytes(request, specs, cores()) : 0;
  }

  void execute(Step& step) {
    for (const FakeTensor& y : step.outputs) y.storage->fill();
    if (!compute_ || step.outputs[0].storage == step.inputs[0].storage) return;
    std::vector<Operand> operands;
    for (const FakeTensor& x : step.inputs)
      operands.push_back({x.spec, x.storage ? x.storage->values : std::span<const float>{}});
    std::vector<Spec> specs;
    for (const FakeTensor& y : step.outputs) specs.push_back(y.spec);
    std::vector<std::vector<float>> results = compute(step.request, operands, specs, threads_);
    for (size_t i = 0; i < results.size(); ++i)
      step.outputs[i].storage->values = std::move(results[i]);
  }

  // Into memory that is there already: between replays, never while a trace is captured.
  void copy(const Step& step) const {
    expect_no_capture("copy");
    const FakeTensor &x = step.inputs[0], &y = step.inputs[1];
    ensure(x.spec == y.spec, Fault::internal, "[copy] got {} into {}, expected the same",
           to_string(x.spec), to_string(y.spec));
    y.storage->values = x.storage->values;
  }

  bool compute_;
  int threads_;
  Caps caps_;
  Ledger dram_, l1_;     // outlive every Storage below
  int64_t l1_peak_ = 0;  // of a core, with buffers
  std::unordered_map<TensorId, FakeTensor> tensors_;
  std::map<TensorId, Trace> traces_;
  std::optional<Trace> recording_;
  TensorId next_ = 1;  // never used again, so that a stale id is noticed
};

}  // namespace

std::unique_ptr<TtApi> open_fake_device(const FakeOptions& options) {
  return std::make_unique<FakeDevice>(options);
}

}  // namespace tendon::tt
