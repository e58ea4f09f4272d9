#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "backends/ttnn/tt_api.h"
#include "tensor/check.h"
#include "tensor/embed.h"

TENDON_EMBED(char, tendon_ttnn_worker, TENDON_TTNN_WORKER);

namespace tendon::tt {
namespace {
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kFirstOfOurs = 16;  // above all of the child's, so that no copy overwrites another
constexpr uint64_t kTextBytesMax = 1 << 20, kValuesMax = 1 << 30;  // of an answer
constexpr off_t kLogBytesMax = 1 << 20;
constexpr off_t kTailBytes = 16 << 10;
constexpr size_t kTailLines = 6;
constexpr double kEndingS = 10;
constexpr int kDevice = 0;              // the library's number of the chip
constexpr double kCloseDeadlineS = 20;  // a chip is closed properly if that works at all

// ---- The process ----

class Descriptor {  // closes itself
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept { std::swap(number_, other.number_); }
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int get() const { return number_; }

 private:
  int number_ = -1;
};

Descriptor checked(int number, const char* what) {
  ensure(number >= 0, Fault::backend, "[ttnn] no {} for the worker: {}", what, strerror(errno));
  const Descriptor low(number);
  const int high = fcntl(number, F_DUPFD_CLOEXEC, kFirstOfOurs);
  ensure(high >= 0, Fault::backend, "[ttnn] no {} for the worker: {}", what, strerror(errno));
  return Descriptor(high);
}

Descriptor memory_file(const char* name) {
  return checked(memfd_create(name, MFD_CLOEXEC), "memory");
}

// A file in memory from which Python reads what it is to do.
Descriptor script() {
  Descriptor file = memory_file("tendon-ttnn-worker.py");
  const std::string text(tendon_ttnn_worker, tendon_ttnn_worker_end);
  ensure(pwrite(file.get(), text.data(), text.size(), 0) == std::ssize(text), Fault::backend,
         "[ttnn] no memory for the worker: {}", strerror(errno));
  return file;
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> found;
  found.reserve(words.size() + 1);
  for (const std::string& word : words) found.push_back(const_cast<char*>(word.c_str()));
  found.push_back(nullptr);
  return found;
}

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

// What the library will find in its environment.
struct Mode {
  explicit Mode(const std::map<std::string, std::string>& environment) {
    const auto given = [&](const char* name) {
      const auto found = environment.find(name);
      return found != environment.end() && !found->second.empty();
    };
    simulator = given("TT_METAL_SIMULATOR");
    mock = !simulator && given("TT_METAL_MOCK_CLUSTER_DESC_PATH");
    fast_dispatch = !mock && !given("TT_METAL_SLOW_DISPATCH_MODE");
  }
  bool simulator = false, mock = false;
  bool fast_dispatch = false;  // a mock has no command queues
};

// Whether `descriptor` can do what `events` says before the deadline.
bool wait(int descriptor, short events, Clock::time_point deadline) {
  pollfd entry{descriptor, events, 0};
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    const int ready =
        poll(&entry, 1, static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1 << 30)));
    if (ready >= 0 || errno != EINTR) return ready != 0;
  }
}

Clock::time_point in(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

bool is_noise(std::string_view line) {
  for (const char* word :
       {"[DEADLOCK", "RISC: ", "RISC0: ", "RISC1: ", "RISC2: ", "(TT_SIM_", "[0x", "[server] "})
    if (line.find(word) != line.npos) return true;
  return line.find_first_not_of(' ') == line.npos || line.starts_with(" --- ");
}

// The child gets no descriptor from `first` on.
void close_from(posix_spawn_file_actions_t& files, int first) {
#if __GLIBC_PREREQ(2, 34)
  posix_spawn_file_actions_addclosefrom_np(&files, first);
#else  // what is open now; closing one that is not any more is no error
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    if (const int open = std::stoi(entry.path().filename()); open >= first)
      posix_spawn_file_actions_addclose(&files, open);
#endif
}

// A Python process with one socket and everything that runs below it.
class WorkerProcess {
 public:
  // Throws Error(Fault::backend) when the interpreter cannot be started.
  WorkerProcess(const WorkerOptions& options, const std::map<std::string, std::string>& environment,
                const std::string& mode) {
    std::array<int, 2> pair{-1, -1};
    ensure(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) == 0, Fault::backend,
           "[ttnn] no socket for the worker: {}", strerror(errno));
    socket_ = checked(pair[0], "socket");
    const Descriptor socket = checked(pair[1], "socket"), input = script();
    log_ = memory_file("tendon-ttnn-log");
    fcntl(log_.get(), F_SETFL, O_APPEND);  // several processes write to it
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    int last = -1;  // the child's descriptors, see worker.py
    for (const int from : {input.get(), log_.get(), log_.get(), socket.get()})
      posix_spawn_file_actions_adddup2(&files, from, ++last);
    close_from(files, last + 1);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none;  // a caller's blocked signals are not the worker's
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    const std::vector<std::string> command{options.python,
                                           "-B",
                                           "-",
                                           options.python,
                                           fmt::to_string(kDevice),
                                           fmt::to_string(options.trace_region_bytes),
                                           mode};
    std::vector<std::string> variables(environment.size());
    std::ranges::transform(environment, variables.begin(), [](const auto& variable) {
      return fmt::format("{}={}", variable.first, variable.second);
    });
    const int error = posix_spawnp(&keeper_, options.python.c_str(), &files, &attributes,
                                   pointers(command).data(), pointers(variables).data());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    if (error != 0) keeper_ = -1;
    ensure(
        error == 0, Fault::backend,
        "[ttnn] '{}' is not a Python interpreter ({}); name one of an environment that has ttnn; "
        "scripts/ttnn-sim makes one",
        options.python, strerror(error));
    exit_ = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, keeper_, 0)));
  }
  WorkerProcess(const WorkerProcess&) = delete;
  ~WorkerProcess() { end(); }

  // Sends a message, if it is not empty, with values, and waits for the next one that comes.
  // Nothing: the process ended, or it was late and has been ended.
  struct Message {
    std::string text;
    std::vector<float> values;
  };
  std::optional<Message> exchange(std::string_view text, std::span<const float> values,
                                  double deadline_s) {
    const Clock::time_point deadline = in(deadline_s);
    const auto transfer = [&](short event, const void* bytes, size_t size) {
      auto* at = static_cast<char*>(const_cast<void*>(bytes));
      while (size > 0) {
        late_ = !wait(socket_.get(), event, deadline);
        if (late_) return false;
        const ssize_t n = event == POLLOUT
                              ? send(socket_.get(), at, size, MSG_NOSIGNAL | MSG_DONTWAIT)
                              : recv(socket_.get(), at, size, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
        if (n > 0) at += n, size -= static_cast<size_t>(n);
      }
      return true;
    };
    const uint64_t sizes[] = {text.size(), values.size()};
    uint64_t coming[] = {0, 0};
    Message answer;
    const bool sent = text.empty() || (transfer(POLLOUT, sizes, sizeof(sizes)) &&
                                       transfer(POLLOUT, text.data(), text.size()) &&
                                       transfer(POLLOUT, values.data(), values.size_bytes()));
    if (sent && transfer(POLLIN, coming, sizeof(coming)) && coming[0] <= kTextBytesMax &&
        coming[1] <= kValuesMax) {
      answer.text.resize(coming[0]);
      answer.values.resize(coming[1]);
      if (transfer(POLLIN, answer.text.data(), answer.text.size()) &&
          transfer(POLLIN, answer.values.data(), answer.values.size() * sizeof(float)))
        return answer;
    }
    end();
    return {};
  }
  bool late() const { return late_; }

  // Kills whatever runs below, the simulator too, and waits until it is gone.
  void end() {
    if (keeper_ < 0) return;
    socket_ = Descriptor();  // the keeper sees that and kills all that is below it
    if (!wait(exit_.get(), POLLIN, in(kEndingS))) kill(-keeper_, SIGKILL);
    int status = 0;
    while (waitpid(keeper_, &status, 0) < 0 && errno == EINTR) {
    }
    // The keeper hands on the worker's end the way a shell does.
    const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    ending_ = code > 128 ? fmt::format("signal {} ({})", code - 128, strsignal(code - 128))
                         : fmt::format("exit code {}", code);
    keeper_ = -1;
  }
  // After that: "exit code 3" or "signal 11 (Segmentation fault)".
  const std::string& ending() const { return ending_; }

  // What the process printed last, without the simulator's reports of idle cores.
  std::string last_lines() const {
    struct stat about {};
    fstat(log_.get(), &about);
    const off_t from = std::max<off_t>(about.st_size - kTailBytes, 0);
    std::string text(static_cast<size_t>(about.st_size - from), '\0');
    text.resize(static_cast<size_t>(
        std::max<ssize_t>(pread(log_.get(), text.data(), text.size(), from), 0)));
    std::istringstream all(text);
    std::deque<std::string> lines;
    for (std::string line; std::getline(all, line);) {
      if (!is_noise(line)) lines.push_back(line);
      if (lines.size() > kTailLines) lines.pop_front();
    }
    return fmt::format("{}", fmt::join(lines, " | "));
  }

  // Keeps a chatty library from filling the memory.
  void forget_old_lines() {
    struct stat about {};
    if (fstat(log_.get(), &about) == 0 && about.st_size > kLogBytesMax)
      (void)!ftruncate(log_.get(), 0);
  }

 private:
  Descriptor socket_, log_, exit_;
  pid_t keeper_ = -1;
  bool late_ = false;
  std::string ending_;
};

// ---- Messages ----

// What worker.py hears of a request; enumerators by their names.
json message_of(const Request& r) {
  constexpr std::array<std::string_view, 3> kActivations = {"none", "gelu_tanh", "silu"};
  constexpr std::array<std::string_view, 3> kKinds = {"library", "multicast_2d", "multicast_1d"};
  constexpr std::array<std::string_view, 2> kFidelities = {"hifi2", "hifi4"};
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
        mode_(environment_),
        python_(options, environment_, mode_.simulator ? "simulator" : "library") {
    hear(false);  // of the interpreter alone
    const json hello = hear(true);
    try {
      ensure(!hello.contains("fault"), Fault::backend, "[ttnn] {}",
             hello.value("fault", std::string()));
      const json& caps = hello.at("caps");
      caps_ = {.grid_x = caps.at("grid_x"),
               .grid_y = caps.at("grid_y"),
               .l1_bytes = caps.at("l1_bytes"),
               .fast_dispatch = mode_.fast_dispatch,
               .simulated = mode_.simulator || mode_.mock,
               .description = mode_.simulator ? "TTNN library on a simulated Wormhole"
                              : mode_.mock ? "TTNN library on a mock device, which computes nothing"
                                           : "Tenstorrent hardware"};
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

 private:
  // What the worker says while it opens the device. The first message comes before the library.
  json hear(bool greeted) {
    const auto said = python_.exchange({}, {}, options_.open_deadline_s);
    if (said) return json::parse(said->text, nullptr, false);
    const std::string lines = python_.last_lines();
    ensure(
        !python_.late(), Fault::backend,
        "[ttnn] device {} was not open after {} s; give it more time or look at what was printed "
        "last: {}",
        kDevice, options_.open_deadline_s, lines);
    ensure(greeted, Fault::backend,
           "[ttnn] '{}' is not a Python interpreter (3.9 or newer): {}; it printed: {}",
           options_.python, python_.ending(), lines);
    fail(Fault::backend, "[ttnn] the worker ended while it opened device {} ({}); last lines: {}",
         kDevice, python_.ending(), lines);
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
  Mode mode_;
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
