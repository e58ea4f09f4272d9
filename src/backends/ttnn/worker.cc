#include "backends/ttnn/worker.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <map>

#include "backends/ttnn/worker_process.h"
#include "backends/ttnn/worker_protocol.h"
#include "tensor/check.h"

namespace tendon::tt {
namespace {

constexpr size_t kUnusedMax = 4096;            // ids that wait for the next message
constexpr size_t kSharedBytesKept = 64 << 20;  // after a transfer; a larger file is emptied
constexpr int kDevice = 0;                     // the library's number of the chip
constexpr double kCloseDeadlineS = 20;         // a chip is closed properly if that works at all

using Words = std::map<std::string, std::string>;  // what the worker says of itself

// The library and its MPI leave files in /dev/shm when they are killed. A caller's own setting
// wins.
const std::vector<std::string>& quiet_environment() {
  static const std::vector<std::string> names{"OMPI_MCA_btl=self",
                                              "TT_METAL_SHM_TRACKING_DISABLED=1"};
  return names;
}

Clock::time_point in(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

Words parse(std::span<const std::byte> packet) {
  Words words;
  const std::string_view text(reinterpret_cast<const char*>(packet.data()), packet.size());
  for (size_t begin = 0; begin < text.size();) {
    const std::string_view line = text.substr(begin, text.find('\n', begin) - begin);
    const size_t equals = std::min(line.find('='), line.size() - 1);
    words[std::string(line.substr(0, equals))] = line.substr(equals + 1);
    begin += line.size() + 1;
  }
  return words;
}

int64_t number(const Words& words, const std::string& name) {
  const auto found = words.find(name);
  int64_t value = -1;
  if (found != words.end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
  ensure(value >= 0, Fault::internal, "[ttnn] the worker did not say its {}", name);
  return value;
}

[[noreturn]] void refuse(const WorkerOptions& options, const std::string& version,
                         const Words& said) {
  const std::string& fault = said.at("fault");
  const std::string text = said.contains("text") ? said.at("text") : "";
  if (fault == "no_library")
    fail(Fault::backend,
         "[ttnn] the interpreter {} (Python {}) has no ttnn; scripts/ttnn-sim makes an environment "
         "that has; name its bin/python",
         options.python, version);
  if (fault == "library")
    fail(Fault::backend, "[ttnn] the interpreter {} (Python {}) cannot import ttnn: {}",
         options.python, version, text);
  if (fault == "version")
    fail(Fault::backend,
         "[ttnn] ttnn {} of {} is not a version that tendon knows ({}) and lacks {}; install a "
         "known one",
         said.at("library"), options.python, said.at("known"), text);
  fail(Fault::backend, "[ttnn] ttnn {} cannot open device {}: {}", said.at("library"), kDevice,
       text);
}

// What the library will find in its environment.
struct Surroundings {
  explicit Surroundings(const std::vector<std::string>& environment)
      : simulated(!value_of(environment, "TT_METAL_SIMULATOR").empty()),
        mock(!simulated && !value_of(environment, "TT_METAL_MOCK_CLUSTER_DESC_PATH").empty()),
        fast_dispatch(!mock && value_of(environment, "TT_METAL_SLOW_DISPATCH_MODE").empty()) {}
  bool simulated, mock;
  bool fast_dispatch;  // a mock device has no command queues
};

std::vector<std::string> arguments(const WorkerOptions& options, const Surroundings& s) {
  return {fmt::to_string(kDevice), fmt::to_string(options.trace_region_bytes),
          s.fast_dispatch ? "1" : "0", s.simulated ? "simulated" : "chip"};
}

std::string description(const Words& hello, const Surroundings& s) {
  std::string text = s.simulated ? "TTNN library on a simulated Wormhole"
                     : s.mock    ? "TTNN library on a mock device, which computes nothing"
                                 : "Tenstorrent hardware";
  if (number(hello, "known") == 0)
    text +=
        fmt::format("; ttnn {} is not a version that tendon was tried with", hello.at("library"));
  if (!hello.at("missing").empty()) text += "; the library lacks " + hello.at("missing");
  if (number(hello, "packed_upload") == 0)
    text += "; its tensor file is another one, so it packs uploads itself";
  return text;
}

class Worker final : public TtApi {
 public:
  explicit Worker(const WorkerOptions& options);
  Worker(const Worker&) = delete;
  ~Worker() override;

  const Caps& caps() const override { return caps_; }
  Reply upload(const Spec& spec, std::span<const std::byte> bytes) override;
  Status download(TensorId x, std::span<float> to) override;
  void release(TensorId x) override;
  Reply run(const Request& request) override;
  Status begin_trace() override { return call({.verb = Verb::begin_trace}, {}).status; }
  Reply end_trace() override;
  Status replay_trace(TensorId trace) override {
    return call({.verb = Verb::replay_trace}, {{trace}}).status;
  }
  void release_trace(TensorId trace) override;
  const std::string& last_error() const override { return error_; }
  const WorkerTimes& times() const { return times_; }

 private:
  Words hear(Clock::time_point deadline);
  Reply call(WireRequest wire, std::span<const TensorId> inputs);
  Reply read_reply(const WireRequest& wire);
  Status lose(Status status, std::string text);
  Status refuse_call(Status status, std::string text);
  bool resize_shared(size_t bytes);

  WorkerOptions options_;
  std::vector<std::string> environment_;
  Surroundings surroundings_;
  WorkerProcess python_;
  Caps caps_;
  WorkerTimes times_;
  double library_s_ = 0;  // of the last call
  bool lost_ = false;
  TensorId next_ = 1;
  std::vector<TensorId> unused_;
  std::vector<std::byte> packet_;
  std::string error_;
};

Worker::Worker(const WorkerOptions& options)
    : options_(options),
      environment_(environment_with(quiet_environment(), options.environment)),
      surroundings_(environment_),
      python_(options, environment_, arguments(options, surroundings_)) {
  const Clock::time_point deadline = in(options.open_deadline_s);
  const Words first = hear(deadline);
  ensure(number(first, "protocol") == kWorkerProtocol, Fault::internal,
         "[ttnn] the worker speaks protocol {}", number(first, "protocol"));
  const Words hello = hear(deadline);
  if (hello.contains("fault")) refuse(options, first.at("python"), hello);
  caps_.grid_x = number(hello, "grid_x");
  caps_.grid_y = number(hello, "grid_y");
  caps_.l1_bytes = number(hello, "l1_bytes");
  caps_.fast_dispatch = surroundings_.fast_dispatch;
  caps_.simulated = surroundings_.simulated || surroundings_.mock;
  caps_.description = description(hello, surroundings_);
}

// What the worker says while it opens the device. The first message comes before the library.
Words Worker::hear(Clock::time_point deadline) {
  const bool greeted = !packet_.empty();
  const auto received = python_.receive(packet_, deadline);
  if (received == WorkerProcess::Received::message) return parse(packet_);
  python_.end();
  const std::string lines = python_.last_lines();
  ensure(received != WorkerProcess::Received::late, Fault::backend,
         "[ttnn] device {} was not open after {} s; give it more time or look at what was printed "
         "last: {}",
         kDevice, options_.open_deadline_s, lines);
  ensure(greeted, Fault::backend,
         "[ttnn] '{}' is not a Python interpreter (3.9 or newer): {}; it printed: {}",
         options_.python, python_.ending(), lines);
  fail(Fault::backend, "[ttnn] the worker ended while it opened device {} ({}); last lines: {}",
       kDevice, python_.ending(), lines);
}

Worker::~Worker() {
  // A simulated device has nothing to close, and the library takes 5 s for it.
  if (!lost_ && !surroundings_.simulated) {
    options_.call_deadline_s = std::min(options_.call_deadline_s, kCloseDeadlineS);
    call({.verb = Verb::close}, {});
    python_.receive(packet_, in(kCloseDeadlineS));  // until its end
  }
  python_.end();
}

Status Worker::lose(Status status, std::string text) {
  python_.end();
  lost_ = true;
  error_ = std::move(text);
  return status;
}

Status Worker::refuse_call(Status status, std::string text) {
  error_ = std::move(text);
  return status;
}

bool Worker::resize_shared(size_t bytes) {
  return ftruncate(python_.shared_memory(), static_cast<off_t>(bytes)) == 0;
}

Reply Worker::call(WireRequest wire, std::span<const TensorId> inputs) {
  if (lost_) return {Status::device_lost, {}};
  wire.first_output = next_;
  wire.inputs = static_cast<uint32_t>(inputs.size());
  wire.released = static_cast<uint32_t>(unused_.size());
  const std::array parts{std::as_bytes(std::span(&wire, 1)), std::as_bytes(inputs),
                         std::as_bytes(std::span(unused_))};
  const Clock::time_point deadline = in(options_.call_deadline_s);
  auto received = python_.send(parts, deadline);
  unused_.clear();
  if (received == WorkerProcess::Received::message) received = python_.receive(packet_, deadline);
  if (received == WorkerProcess::Received::message) return read_reply(wire);
  const std::string what = wire.verb == Verb::run ? std::string(name(static_cast<Call>(wire.call)))
                                                  : "a transfer or trace";
  python_.end();
  const std::string lines = python_.last_lines();
  if (received == WorkerProcess::Received::late)
    return {lose(Status::deadline,
                 fmt::format("[ttnn] {} took longer than {} s; the worker was ended; last lines: "
                             "{}",
                             what, options_.call_deadline_s, lines)),
            {}};
  return {lose(Status::device_lost,
               fmt::format("[ttnn] the worker ended during {} ({}); last lines: {}", what,
                           python_.ending(), lines)),
          {}};
}

Reply Worker::read_reply(const WireRequest& wire) {
  python_.forget_old_lines();
  WireReply head;
  if (packet_.size() >= sizeof(head)) std::memcpy(&head, packet_.data(), sizeof(head));
  const size_t text_at = sizeof(head) + head.outputs * sizeof(WireOutput);
  if (packet_.size() < sizeof(head) || packet_.size() != text_at + head.text_bytes)
    return {lose(Status::device_lost, "[ttnn] the worker's answer has the wrong size"), {}};
  library_s_ = static_cast<double>(head.library_ns) * 1e-9;
  Reply reply{static_cast<Status>(head.status), {}};
  for (size_t i = 0; i < head.outputs; ++i) {
    WireOutput o;
    std::memcpy(&o, packet_.data() + sizeof(head) + i * sizeof(o), sizeof(o));
    reply.outputs.push_back({o.id,
                             {{o.dims[0], o.dims[1], o.dims[2], o.dims[3]},
                              static_cast<Format>(o.format),
                              static_cast<Layout>(o.layout),
                              static_cast<Memory>(o.memory)}});
  }
  next_ += head.outputs;
  if (reply.status != Status::ok) {
    const std::string text(reinterpret_cast<const char*>(packet_.data() + text_at),
                           head.text_bytes);
    error_ = wire.verb == Verb::run
                 ? fmt::format("[ttnn] {}: {}", name(static_cast<Call>(wire.call)), text)
                 : fmt::format("[ttnn] {}", text);
  }
  return reply;
}

Reply Worker::run(const Request& r) {
  const Clock::time_point start = Clock::now();
  const Compute& c = r.compute;
  WireRequest wire{.verb = Verb::run,
                   .call = static_cast<uint8_t>(r.call),
                   .format = static_cast<uint8_t>(r.format),
                   .memory = static_cast<uint8_t>(r.memory),
                   .activation = static_cast<uint8_t>(r.activation),
                   .fidelity = static_cast<uint8_t>(c.fidelity),
                   .f32_accumulate = c.f32_accumulate,
                   .blocks = static_cast<uint8_t>(r.blocks.kind),
                   .axis = r.axis,
                   .scalar = r.scalar,
                   .heads = r.heads,
                   .kv_heads = r.kv_heads,
                   .grid_x = r.blocks.grid_x,
                   .grid_y = r.blocks.grid_y,
                   .k_block = r.blocks.k_block,
                   .subblock_m = r.blocks.subblock_m,
                   .subblock_n = r.blocks.subblock_n,
                   .core_m = r.blocks.core_m,
                   .core_n = r.blocks.core_n,
                   .q_chunk = r.chunks.q,
                   .k_chunk = r.chunks.k};
  std::copy(r.begin.begin(), r.begin.end(), wire.begin);
  std::copy(r.dims.begin(), r.dims.end(), wire.dims);
  Reply reply = call(wire, r.inputs);
  if (!lost_) {
    times_.calls += 1;
    times_.total_s += std::chrono::duration<double>(Clock::now() - start).count();
    times_.library_s += library_s_;
  }
  return reply;
}

Reply Worker::upload(const Spec& spec, std::span<const std::byte> bytes) {
  if (lost_) return {Status::device_lost, {}};
  const int file = python_.shared_memory();
  if (!resize_shared(kFileHeaderBytes + bytes.size()))
    return {
        refuse_call(Status::out_of_memory, fmt::format("[ttnn] no shared memory for {} bytes: {}",
                                                       bytes.size(), strerror(errno))),
        {}};
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = pwrite(file, bytes.data() + done, bytes.size() - done,
                             static_cast<off_t>(kFileHeaderBytes + done));
    if (n <= 0)
      return {
          refuse_call(Status::out_of_memory, fmt::format("[ttnn] no shared memory for {} bytes: {}",
                                                         bytes.size(), strerror(errno))),
          {}};
    done += static_cast<size_t>(n);
  }
  WireRequest wire{.verb = Verb::upload,
                   .format = static_cast<uint8_t>(spec.format),
                   .layout = static_cast<uint8_t>(spec.layout),
                   .memory = static_cast<uint8_t>(spec.memory)};
  std::copy(spec.dims.begin(), spec.dims.end(), wire.dims);
  Reply reply = call(wire, {});
  if (bytes.size() > kSharedBytesKept) resize_shared(0);
  return reply;
}

Status Worker::download(TensorId x, std::span<float> to) {
  if (lost_) return Status::device_lost;
  resize_shared(0);
  const Status status = call({.verb = Verb::download}, {{x}}).status;
  if (status != Status::ok) return status;
  const off_t bytes = lseek(python_.shared_memory(), 0, SEEK_END);
  if (bytes != static_cast<off_t>(to.size_bytes()))
    return refuse_call(Status::illegal,
                       fmt::format("[ttnn] tensor {} has {} values, not {}", x,
                                   bytes / static_cast<off_t>(sizeof(float)), to.size()));
  auto* const target = reinterpret_cast<std::byte*>(to.data());
  for (size_t done = 0; done < to.size_bytes();) {
    const ssize_t n = pread(python_.shared_memory(), target + done, to.size_bytes() - done,
                            static_cast<off_t>(done));
    if (n <= 0) return lose(Status::device_lost, "[ttnn] the shared memory cannot be read");
    done += static_cast<size_t>(n);
  }
  return Status::ok;
}

void Worker::release(TensorId x) {
  if (x == 0 || lost_) return;
  unused_.push_back(x);  // travels with the next call
  if (unused_.size() >= kUnusedMax) call({.verb = Verb::release}, {});
}

Reply Worker::end_trace() {
  const TensorId trace = next_;
  Reply reply = call({.verb = Verb::end_trace}, {});
  if (reply.status != Status::ok) return reply;
  ++next_;
  reply.outputs.push_back({trace, {}});
  return reply;
}

void Worker::release_trace(TensorId trace) {
  call({.verb = Verb::release_trace}, {{trace}});
  release(trace);
}

}  // namespace

std::unique_ptr<TtApi> open_worker(const WorkerOptions& options) {
  return std::make_unique<Worker>(options);
}

WorkerTimes worker_times(const TtApi& api) {
  const auto* const worker = dynamic_cast<const Worker*>(&api);
  return worker != nullptr ? worker->times() : WorkerTimes{};
}

WorkerOptions simulator_options(const std::string& folder) {
  WorkerOptions options{.python = folder + "/venv/bin/python"};
  std::ifstream file(folder + "/environment");
  ensure(file.good() && access(options.python.c_str(), X_OK) == 0, Fault::backend,
         "[ttnn] {} holds no TTNN library with a simulator (venv/bin/python and environment); run "
         "scripts/ttnn-sim {}",
         folder, folder);
  for (std::string line; std::getline(file, line);)
    if (!line.empty() && line[0] != '#') options.environment.push_back(line);
  return options;
}

}  // namespace tendon::tt
