#include "backends/ttnn/worker_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <sstream>

#include "tensor/check.h"
#include "tensor/embed.h"

TENDON_EMBED(char, tendon_ttnn_worker, TENDON_TTNN_WORKER);

namespace tendon::tt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFirstOfOurs = 16;  // above all of the child's, so that no copy overwrites another
constexpr uint64_t kTextBytesMax = 1 << 20, kValuesMax = 1 << 30;  // of an answer
constexpr off_t kLogBytesMax = 1 << 20;
constexpr off_t kTailBytes = 16 << 10;
constexpr size_t kTailLines = 6;
constexpr double kEndingS = 10;

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

}  // namespace

WorkerProcess::Folder::Folder() {
  ensure(mkdtemp(path.data()) != nullptr, Fault::backend,
         "[ttnn] no folder {} for the library's logs and compilers: {}; /tmp must be writable",
         path, strerror(errno));
}

WorkerProcess::Folder::~Folder() {
  std::error_code gone;
  std::filesystem::remove_all(path, gone);
}

WorkerProcess::WorkerProcess(const WorkerOptions& options,
                             const std::map<std::string, std::string>& environment,
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
                                         fmt::to_string(options.device),
                                         fmt::to_string(options.trace_region_bytes),
                                         mode,
                                         folder_.path};
  std::vector<std::string> variables(environment.size());
  std::ranges::transform(environment, variables.begin(), [](const auto& variable) {
    return fmt::format("{}={}", variable.first, variable.second);
  });
  const int error = posix_spawnp(&keeper_, options.python.c_str(), &files, &attributes,
                                 pointers(command).data(), pointers(variables).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) keeper_ = -1;
  ensure(error == 0, Fault::backend,
         "[ttnn] '{}' is not a Python interpreter ({}); name one of an environment that has ttnn; "
         "scripts/ttnn-sim makes one",
         options.python, strerror(error));
  exit_ = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, keeper_, 0)));
}

std::optional<WorkerProcess::Message> WorkerProcess::exchange(std::string_view text,
                                                              std::span<const float> values,
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

void WorkerProcess::end() {
  if (keeper_ < 0) return;
  socket_ = Descriptor();  // the keeper sees that, kills all that is below it, removes the folder
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

std::string WorkerProcess::last_lines() const {
  struct stat about {};
  fstat(log_.get(), &about);
  const off_t from = std::max<off_t>(about.st_size - kTailBytes, 0);
  std::string text(static_cast<size_t>(about.st_size - from), '\0');
  text.resize(
      static_cast<size_t>(std::max<ssize_t>(pread(log_.get(), text.data(), text.size(), from), 0)));
  std::istringstream all(text);
  std::deque<std::string> lines;
  for (std::string line; std::getline(all, line);) {
    if (!is_noise(line)) lines.push_back(line);
    if (lines.size() > kTailLines) lines.pop_front();
  }
  return fmt::format("{}", fmt::join(lines, " | "));
}

void WorkerProcess::forget_old_lines() {
  struct stat about {};
  if (fstat(log_.get(), &about) == 0 && about.st_size > kLogBytesMax)
    (void)!ftruncate(log_.get(), 0);
}

}  // namespace tendon::tt
