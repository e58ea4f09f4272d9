#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "backends/ttnn/tt_api.h"
#include "backends/ttnn/worker_process.h"
#include "tensor/check.h"

namespace tendon::tt {
namespace {
using nlohmann::json;

constexpr double kCloseDeadlineS = 20;  // a chip is closed properly if that works at all

// What keeps the library and its MPI from leaving files in /dev/shm when they are killed, this
// process's environment, and `changes` ("NAME=value"); the last of a name holds.
std::map<std::string, std::string> environment_with(const std::vector<std::string>& changes) {
  std::map<std::string, std::string> all{{"OMPI_MCA_btl", "self"},
                                         {"TT_METAL_SHM_TRACKING_DISABLED", "1"}};
  const auto set = [&](const std::string& entry) {
    const size_t equals = std::min(entry.find('='), entry.size());
    all[entry.substr(0, equals)] = entry.substr(std::min(equals + 1, entry.size()));
  };
  for (char** entry = environ; *entry != nullptr; ++entry) set(*entry);
  for (const std::string& change : changes) set(change);
  return all;
}

// ---- Messages ----

// What worker.py hears of a request; enumerators by their names.
json message_of(const Request& r) {
  constexpr std::array<std::string_view, 3> kActivations = {"none", "gelu_tanh", "silu"};
  constexpr std::array<std::string_view, 3> kKinds = {"library", "multicast_2d", "multicast_1d"};
  const Blocks& b = r.blocks;
  return {{"inputs", r.inputs},
          {"begin", r.begin},
          {"dims", r.dims},
          {"axis", r.axis},
          {"heads", r.heads},
          {"kv_heads", r.kv_heads},
          {"scalar", r.scalar},
          {"format", name(r.format)},
          {"memory", name_in(kMemories, r.memory)},
          {"activation", name_in(kActivations, r.activation)},
          {"fidelity", name_in(kFidelities, r.compute.fidelity)},
          {"f32_accumulate", r.compute.f32_accumulate},
          {"blocks",
           {{"kind", name_in(kKinds, b.kind)},
            {"grid_x", b.grid_x},
            {"grid_y", b.grid_y},
            {"k_block", b.k_block},
            {"subblock_m", b.subblock_m},
            {"subblock_n", b.subblock_n},
            {"core_m", b.core_m},
            {"core_n", b.core_n}}},
          {"q_chunk", r.chunks.q},
          {"k_chunk", r.chunks.k}};
}

// What worker.py says of a tensor.
Spec spec_of(const json& y) {
  const auto index = [&](const auto& names, const char* key) {
    const std::string word = y.at(key);
    const auto at = std::ranges::find(names, word);
    ensure(at != names.end(), Fault::backend,
           "[ttnn] the worker made a tensor of an unknown {}: {}", key, word);
    return at - names.begin();
  };
  return {.dims = y.at("dims"),
          .format = static_cast<Format>(index(kFormats, "format")),
          .layout = static_cast<Layout>(index(kLayouts, "layout")),
          .memory = static_cast<Memory>(index(kMemories, "memory"))};
}

// ---- The device ----

class Worker final : public TtApi {
 public:
  explicit Worker(const WorkerOptions& options)
      : options_(options),
        environment_(environment_with(options.environment)),
        python_(options, environment_, given("TT_METAL_SIMULATOR") ? "simulator" : "library") {
    hear(false);  // of the interpreter alone
    const json hello = hear(true);
    const bool simulator = given("TT_METAL_SIMULATOR"),
               mock = !simulator && given("TT_METAL_MOCK_CLUSTER_DESC_PATH");
    try {
      ensure(!hello.contains("fault"), Fault::backend, "[ttnn] {}",
             hello.value("fault", std::string()));
      const json& caps = hello.at("caps");
      caps_ = {.grid_x = caps.at("grid_x"),
               .grid_y = caps.at("grid_y"),
               .l1_bytes = caps.at("l1_bytes"),
               // A mock has no command queues.
               .fast_dispatch = !mock && !given("TT_METAL_SLOW_DISPATCH_MODE"),
               .simulated = simulator || mock,
               .description = simulator ? "TTNN library on a simulated Wormhole"
                              : mock    ? "TTNN library on a mock device, which computes nothing"
                                        : "Tenstorrent hardware",
               .arch = caps.at("arch"),
               .version = caps.at("version"),
               .dram_bytes = caps.at("dram_bytes")};
      caps_.description += caps.at("note").get<std::string>();
    } catch (const json::exception& e) {
      fail(Fault::internal, "[ttnn] the worker did not say what its device is: {}", e.what());
    }
  }

  Worker(const Worker&) = delete;
  ~Worker() override {
    // A simulated device has nothing to close, and the library takes 5 s for it.
    if (lost_.empty() && !caps_.simulated) {
      options_.call_deadline_s = std::min(options_.call_deadline_s, kCloseDeadlineS);
      try {
        ask("close");
        python_.exchange({}, {}, kCloseDeadlineS);  // until its end
      } catch (const Error&) {                      // then it is ended like a simulator
      }
    }
    python_.end();
  }

  const Caps& caps() const override { return caps_; }
  Output upload(const Spec& spec, std::span<const float> values) override {
    const Request request{.dims = spec.dims, .format = spec.format, .memory = spec.memory};
    const std::vector<Output> made = ask("upload", request, spec.layout, values).outputs;
    if (made.size() != 1) lose("[ttnn] the worker's answer to upload is no answer");
    return made[0];
  }

  void download(TensorId x, std::span<float> to) override {
    const std::vector<float> values = ask("download", {.inputs = {x}}).values;
    ensure(values.size() == to.size(), Fault::internal, "[ttnn] tensor {} has {} values, not {}", x,
           values.size(), to.size());
    std::ranges::copy(values, to.begin());
  }

  std::vector<Output> run(const Request& request) override {
    return ask(name(request.call), request).outputs;
  }
  void begin_trace() override {
    ensure(caps_.fast_dispatch, Fault::backend,
           "[ttnn] begin_trace: traces need fast dispatch, which this device does not run in");
    ask("begin_trace");
  }
  TensorId end_trace() override {
    ask("end_trace");
    return next_++;
  }

  void replay_trace(TensorId trace) override { ask("replay_trace", {.inputs = {trace}}); }
  void release(TensorId x) noexcept override { released_.push_back(x); }  // with the next call
  DeviceMemory memory() override {
    const std::vector<float> mb = ask("memory").values;
    ensure(mb.size() == 2, Fault::internal, "[ttnn] the worker's answer to memory is no answer");
    const auto bytes = [](float value) { return static_cast<int64_t>(double{value} * (1 << 20)); };
    return {.dram = bytes(mb[0]),
            .dram_size = caps_.dram_bytes,
            .l1 = bytes(mb[1]),
            .l1_size = caps_.l1_bytes,
            .dram_peak = {},
            .l1_peak = {}};
  }

 private:
  // Whether the library will find this in its environment.
  bool given(const char* name) const {
    const auto found = environment_.find(name);
    return found != environment_.end() && !found->second.empty();
  }

  // What the worker says while it opens the device. The first message comes before the library.
  json hear(bool greeted) {
    const auto said = python_.exchange({}, {}, options_.open_deadline_s);
    if (said) return json::parse(said->text, nullptr, false);
    const std::string lines = python_.last_lines();
    ensure(
        !python_.late(), Fault::backend,
        "[ttnn] device {} was not open after {} s; give it more time or look at what was printed "
        "last: {}",
        options_.device, options_.open_deadline_s, lines);
    ensure(greeted, Fault::backend,
           "[ttnn] '{}' is not a Python interpreter (3.9 or newer): {}; it printed: {}",
           options_.python, python_.ending(), lines);
    fail(Fault::backend, "[ttnn] the worker ended while it opened device {} ({}); last lines: {}",
         options_.device, python_.ending(), lines);
  }

  struct Made {
    std::vector<Output> outputs;
    std::vector<float> values;  // of a download
  };
  Made ask(std::string_view call, const Request& request = {}, Layout layout = Layout::tile,
           std::span<const float> values = {}) {
    ensure(lost_.empty(), Fault::backend, "{}", lost_);
    json message = message_of(request);
    message["call"] = call;
    message["first"] = next_;  // outputs are numbered from here
    message["layout"] = name_in(kLayouts, layout);
    message["released"] = std::exchange(released_, {});
    auto said = python_.exchange(message.dump(), values, options_.call_deadline_s);
    if (!said) {
      const std::string how =
          python_.late() ? fmt::format("{} took longer than {} s; the worker was ended", call,
                                       options_.call_deadline_s)
                         : fmt::format("the worker ended during {} ({})", call, python_.ending());
      lose(fmt::format("[ttnn] {}; last lines: {}", how, python_.last_lines()));
    }
    python_.forget_old_lines();
    Made made{.outputs = {}, .values = std::move(said->values)};
    try {
      const json answer = json::parse(said->text);
      if (answer.contains("fault"))
        fail(static_cast<Fault>(answer.at("fault").get<int>()), "[ttnn] {}: {}", call,
             answer.at("text").get<std::string>());
      for (const json& y : answer.at("outputs")) made.outputs.push_back({next_++, spec_of(y)});
    } catch (const json::exception&) {
      lose(fmt::format("[ttnn] the worker's answer to {} is no answer", call));
    }
    return made;
  }

  [[noreturn]] void lose(std::string text) {
    python_.end();
    lost_ = std::move(text);
    fail(Fault::backend, "{}", lost_);
  }

  WorkerOptions options_;
  std::map<std::string, std::string> environment_;
  WorkerProcess python_;
  Caps caps_;
  std::string lost_;  // why, once the device is lost
  TensorId next_ = 1;
  std::vector<TensorId> released_;
};

}  // namespace

std::unique_ptr<TtApi> open_worker(const WorkerOptions& options) {
  return std::make_unique<Worker>(options);
}

}  // namespace tendon::tt
