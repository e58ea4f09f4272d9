#include "backends/ttnn/worker.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <map>

#include "backends/ttnn/worker_process.h"
#include "tensor/check.h"

namespace tendon::tt {
namespace {

constexpr int kDevice = 0;                     // the library's number of the chip
constexpr size_t kReleasedMax = 2048;          // ids that one message takes along
constexpr size_t kSharedBytesKept = 64 << 20;  // after a transfer; a larger file is emptied
constexpr double kCloseDeadlineS = 20;         // a chip is closed properly if that works at all
// The shared memory file is a tensor file of the library: its header, written by the worker, then
// the bytes as the device stores them. Downloads lie at its beginning.
constexpr size_t kFileHeaderBytes = 4096;

// ---- Messages ----

// A message's fixed part is one 64-bit word per field, a float64 where the code is 'd'. This list
// is the only description: the worker hears names and codes when it starts (argument()). Then
// follow `begin` and `dims` of the request, the ids of its inputs, and ids that are free again.
struct Field {
  std::string_view name;
  int64_t word = 0;
  char code = 'q';  // of Python's struct
};

// What a worker does besides the calls of tt_api.h; numbered after them.
constexpr std::array<std::string_view, 6> kVerbs = {"upload",    "download",     "begin_trace",
                                                    "end_trace", "replay_trace", "close"};
constexpr int64_t kCalls = static_cast<int64_t>(Call::copy) + 1;

struct Message {
  int64_t verb = 0;
  Layout layout = Layout::tile;  // upload
  TensorId first_output = 0;     // outputs are numbered from here
  Request request;
};

std::string_view name_of(int64_t verb) {
  return verb < kCalls ? name(static_cast<Call>(verb)) : kVerbs[static_cast<size_t>(verb - kCalls)];
}

std::vector<Field> fields_of(const Message& m) {
  const Request& r = m.request;
  const Blocks& b = r.blocks;
  const auto number = [](auto value) { return static_cast<int64_t>(value); };
  return {{"verb", m.verb},
          {"first", m.first_output},
          {"inputs", std::ssize(r.inputs)},
          {"axis", r.axis},
          {"scalar", std::bit_cast<int64_t>(static_cast<double>(r.scalar)), 'd'},
          {"heads", r.heads},
          {"kv_heads", r.kv_heads},
          {"format", number(r.format)},
          {"layout", number(m.layout)},
          {"memory", number(r.memory)},
          {"activation", number(r.activation)},
          {"fidelity", number(r.compute.fidelity)},
          {"f32_accumulate", number(r.compute.f32_accumulate)},
          {"blocks", number(b.kind)},
          {"grid_x", b.grid_x},
          {"grid_y", b.grid_y},
          {"k_block", b.k_block},
          {"subblock_m", b.subblock_m},
          {"subblock_n", b.subblock_n},
          {"core_m", b.core_m},
          {"core_n", b.core_n},
          {"q_chunk", r.chunks.q},
          {"k_chunk", r.chunks.k}};
}

std::vector<int64_t> words_of(const Message& message, std::span<const TensorId> released) {
  std::vector<int64_t> words;
  for (const Field& f : fields_of(message)) words.push_back(f.word);
  const Request& r = message.request;
  words.insert(words.end(), r.begin.begin(), r.begin.end());
  words.insert(words.end(), r.dims.begin(), r.dims.end());
  words.insert(words.end(), r.inputs.begin(), r.inputs.end());
  words.insert(words.end(), released.begin(), released.end());
  return words;
}

// "verb:q first:q ..." and "reshape slice ... upload ...".
std::array<std::string, 2> vocabulary() {
  std::array<std::string, 2> texts;
  for (const Field& f : fields_of({})) texts[0] += fmt::format("{}:{} ", f.name, f.code);
  for (int64_t i = 0; i < kCalls + std::ssize(kVerbs); ++i)
    texts[1] += fmt::format("{} ", name_of(i));
  return texts;
}

// A reply: exit code of the fault (0: none), nanoseconds inside the library and outputs as words,
// seven more for each output, then the text of an error.
struct Answer {
  int64_t fault = 0, library_ns = 0;
  std::vector<Spec> outputs;
  std::string text;
};

// Nothing where the packet is no reply.
std::optional<Answer> answer_of(std::span<const std::byte> packet) {
  constexpr size_t kHead = 3, kEach = 7;
  std::vector<int64_t> words(packet.size() / sizeof(int64_t));
  if (words.size() < kHead) return {};
  std::memcpy(words.data(), packet.data(), words.size() * sizeof(int64_t));
  const auto outputs = static_cast<uint64_t>(words[2]);
  const auto is = [&](Fault f) { return words[0] == static_cast<int64_t>(f); };
  if (words[0] != 0 && !is(Fault::backend) && !is(Fault::memory) && !is(Fault::internal)) return {};
  if (outputs > (words.size() - kHead) / kEach) return {};
  Answer answer{words[0], words[1], {}, {}};
  for (size_t i = 0; i < outputs; ++i) {
    const int64_t* w = words.data() + kHead + i * kEach;
    const bool known =
        w[0] >= 0 && w[0] <= static_cast<int64_t>(Format::u32) && w[1] >> 1 == 0 && w[2] >> 1 == 0;
    if (!known) return {};
    answer.outputs.push_back({{w[3], w[4], w[5], w[6]},
                              static_cast<Format>(w[0]),
                              static_cast<Layout>(w[1]),
                              static_cast<Memory>(w[2])});
  }
  const auto text = packet.subspan((kHead + outputs * kEach) * sizeof(int64_t));
  answer.text.assign(reinterpret_cast<const char*>(text.data()), text.size());
  return answer;
}

// ---- What the worker says of itself when it starts ----

using Words = std::map<std::string, std::string>;

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
    fail(Fault::backend, "[ttnn] ttnn {} of {} lacks {}; install a version that tendon knows ({})",
         said.at("library"), options.python, text, said.at("known"));
  fail(Fault::backend, "[ttnn] ttnn {} cannot open device {}: {}", said.at("library"), kDevice,
       text);
}

// The library and its MPI leave files in /dev/shm when they are killed. A caller's own setting
// wins.
const std::vector<std::string>& quiet_environment() {
  static const std::vector<std::string> names{"OMPI_MCA_btl=self",
                                              "TT_METAL_SHM_TRACKING_DISABLED=1"};
  return names;
}

// What the library will find in its environment.
struct LibraryMode {
  explicit LibraryMode(const std::vector<std::string>& environment)
      : simulated(!value_of(environment, "TT_METAL_SIMULATOR").empty()),
        mock(!simulated && !value_of(environment, "TT_METAL_MOCK_CLUSTER_DESC_PATH").empty()),
        fast_dispatch(!mock && value_of(environment, "TT_METAL_SLOW_DISPATCH_MODE").empty()) {}
  bool simulated, mock;
  bool fast_dispatch;  // a mock device has no command queues
};

std::vector<std::string> arguments(const WorkerOptions& options, const LibraryMode& mode) {
  const auto [fields, verbs] = vocabulary();
  return {mode.simulated ? "simulated" : "chip",
          fmt::to_string(kDevice),
          fmt::to_string(options.trace_region_bytes),
          mode.fast_dispatch ? "1" : "0",
          fields,
          verbs};
}

std::string description(const Words& hello, const LibraryMode& mode) {
  std::string text = mode.simulated ? "TTNN library on a simulated Wormhole"
                     : mode.mock    ? "TTNN library on a mock device, which computes nothing"
                                    : "Tenstorrent hardware";
  if (number(hello, "known") == 0)
    text +=
        fmt::format("; ttnn {} is not a version that tendon was tried with", hello.at("library"));
  if (number(hello, "packed_upload") == 0)
    text += "; its tensor file is another one, so it packs uploads itself";
  return text;
}

// ---- The device ----

class Worker final : public TtApi {
 public:
  explicit Worker(const WorkerOptions& options);
  Worker(const Worker&) = delete;
  ~Worker() override;

  const Caps& caps() const override { return caps_; }
  Output upload(const Spec& spec, std::span<const std::byte> bytes) override;
  void download(TensorId x, std::span<float> to) override;
  std::vector<Output> run(const Request& request) override;
  void begin_trace() override { ask("begin_trace"); }
  TensorId end_trace() override;
  void replay_trace(TensorId trace) override { ask("replay_trace", {.inputs = {trace}}); }
  void release(TensorId x) noexcept override { released_.push_back(x); }  // with the next call
  const WorkerTimes& times() const { return times_; }

 private:
  Words hear(Clock::time_point deadline);
  std::vector<Output> ask(std::string_view verb, Request request = {},
                          Layout layout = Layout::tile);
  std::vector<Output> call(Message message);
  [[noreturn]] void lose(std::string text);
  void write_shared(std::span<const std::byte> bytes) const;

  WorkerOptions options_;
  std::vector<std::string> environment_;
  LibraryMode mode_;
  WorkerProcess python_;
  Caps caps_;
  WorkerTimes times_;
  std::string lost_;  // why, once the device is lost
  TensorId next_ = 1;
  std::vector<TensorId> released_;
};

Clock::time_point in(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

Worker::Worker(const WorkerOptions& options)
    : options_(options),
      environment_(environment_with(quiet_environment(), options.environment)),
      mode_(environment_),
      python_(options, environment_, arguments(options, mode_)) {
  const Clock::time_point deadline = in(options.open_deadline_s);
  const Words first = hear(deadline);
  const Words hello = hear(deadline);
  if (hello.contains("fault")) refuse(options, first.at("python"), hello);
  caps_ = {.grid_x = number(hello, "grid_x"),
           .grid_y = number(hello, "grid_y"),
           .l1_bytes = number(hello, "l1_bytes"),
           .fast_dispatch = mode_.fast_dispatch,
           .simulated = mode_.simulated || mode_.mock,
           .description = description(hello, mode_)};
}

// What the worker says while it opens the device. The first message comes before the library.
Words Worker::hear(Clock::time_point deadline) {
  const bool greeted = !python_.packet().empty();
  const auto received = python_.receive(deadline);
  if (received == WorkerProcess::Received::message) return parse(python_.packet());
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
  const bool closes = lost_.empty() && !mode_.simulated;
  options_.call_deadline_s = std::min(options_.call_deadline_s, kCloseDeadlineS);
  try {
    if (closes) ask("close");
    if (closes) python_.receive(in(kCloseDeadlineS));  // until its end
  } catch (const Error&) {                             // then it is ended like a simulator
  }
  python_.end();
}

void Worker::lose(std::string text) {
  python_.end();
  lost_ = std::move(text);
  fail(Fault::backend, "{}", lost_);
}

std::vector<Output> Worker::ask(std::string_view verb, Request request, Layout layout) {
  const auto at = std::ranges::find(kVerbs, verb) - kVerbs.begin();
  return call({.verb = kCalls + at, .layout = layout, .request = std::move(request)});
}

std::vector<Output> Worker::call(Message message) {
  ensure(lost_.empty(), Fault::backend, "{}", lost_);
  const Clock::time_point start = Clock::now();
  message.first_output = next_;
  const size_t gone = std::min(released_.size(), kReleasedMax);
  const std::vector<int64_t> words = words_of(message, std::span(released_).first(gone));
  released_.erase(released_.begin(), released_.begin() + static_cast<ptrdiff_t>(gone));
  const Clock::time_point deadline = in(options_.call_deadline_s);
  auto received = python_.send(std::as_bytes(std::span(words)), deadline);
  if (received == WorkerProcess::Received::message) received = python_.receive(deadline);
  const std::string_view what = name_of(message.verb);
  if (received != WorkerProcess::Received::message) {
    python_.end();
    const std::string how =
        received == WorkerProcess::Received::late
            ? fmt::format("{} took longer than {} s; the worker was ended", what,
                          options_.call_deadline_s)
            : fmt::format("the worker ended during {} ({})", what, python_.ending());
    lose(fmt::format("[ttnn] {}; last lines: {}", how, python_.last_lines()));
  }
  python_.forget_old_lines();
  const std::optional<Answer> answer = answer_of(python_.packet());
  if (!answer) lose(fmt::format("[ttnn] the worker's answer to {} is no answer", what));
  times_.total_s += std::chrono::duration<double>(Clock::now() - start).count();
  times_.library_s += static_cast<double>(answer->library_ns) * 1e-9;
  ensure(answer->fault == 0, static_cast<Fault>(answer->fault), "[ttnn] {}: {}", what,
         answer->text);
  std::vector<Output> outputs;
  for (const Spec& spec : answer->outputs) outputs.push_back({next_++, spec});
  return outputs;
}

std::vector<Output> Worker::run(const Request& request) {
  return call({.verb = static_cast<int64_t>(request.call), .request = request});
}

// Behind the header that the worker will write.
void Worker::write_shared(std::span<const std::byte> bytes) const {
  const int file = python_.shared_memory();
  bool fits = ftruncate(file, static_cast<off_t>(kFileHeaderBytes + bytes.size())) == 0;
  for (size_t done = 0; fits && done < bytes.size();) {
    const ssize_t n = pwrite(file, bytes.data() + done, bytes.size() - done,
                             static_cast<off_t>(kFileHeaderBytes + done));
    fits = n > 0;
    if (fits) done += static_cast<size_t>(n);
  }
  ensure(fits, Fault::memory, "[ttnn] no shared memory for {} bytes: {}", bytes.size(),
         strerror(errno));
}

Output Worker::upload(const Spec& spec, std::span<const std::byte> bytes) {
  ensure(lost_.empty(), Fault::backend, "{}", lost_);
  write_shared(bytes);
  const std::vector<Output> made =
      ask("upload", {.dims = spec.dims, .format = spec.format, .memory = spec.memory}, spec.layout);
  if (bytes.size() > kSharedBytesKept) (void)!ftruncate(python_.shared_memory(), 0);
  if (made.size() != 1) lose("[ttnn] the worker's answer to upload is no answer");
  return made[0];
}

void Worker::download(TensorId x, std::span<float> to) {
  ensure(lost_.empty(), Fault::backend, "{}", lost_);
  (void)!ftruncate(python_.shared_memory(), 0);
  ask("download", {.inputs = {x}});
  const off_t bytes = lseek(python_.shared_memory(), 0, SEEK_END);
  ensure(bytes == static_cast<off_t>(to.size_bytes()), Fault::internal,
         "[ttnn] tensor {} has {} values, not {}", x, bytes / static_cast<off_t>(sizeof(float)),
         to.size());
  const std::span<std::byte> target = std::as_writable_bytes(to);
  for (size_t done = 0; done < target.size();) {
    const ssize_t n = pread(python_.shared_memory(), target.data() + done, target.size() - done,
                            static_cast<off_t>(done));
    if (n <= 0) lose("[ttnn] the shared memory cannot be read");
    done += static_cast<size_t>(n);
  }
}

TensorId Worker::end_trace() {
  ask("end_trace");
  return next_++;
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
