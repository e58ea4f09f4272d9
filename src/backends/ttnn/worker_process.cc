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
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "tensor/check.h"
#include "tensor/embed.h"

TENDON_EMBED(char, tendon_ttnn_worker,
             TENDON_TTNN_SCRIPTS
             "/"
             "worker.py");
TENDON_EMBED(char, tendon_ttnn_files,
             TENDON_TTNN_SCRIPTS
             "/"
             "worker_files.py");
TENDON_EMBED(char, tendon_ttnn_keeper,
             TENDON_TTNN_SCRIPTS
             "/"
             "worker_keeper.py");

namespace tendon::tt {
namespace {

// Descriptors of the child, see worker_keeper.py.
constexpr int kSocket = 3, kShared = 4, kLife = 5;
constexpr int kFirstOfOurs = 16;  // above all of the child's, so that no copy overwrites another
constexpr size_t kPacketBytesMax = 1 << 16;
constexpr off_t kLogBytesMax = 1 << 20;
constexpr off_t kTailBytes = 16 << 10;
constexpr size_t kTailLines = 6;
constexpr int kEndingMs = 10'000;

Descriptor checked(int number, const char* what) {
  ensure(number >= 0, Fault::backend, "[ttnn] no {} for the worker: {}", what, strerror(errno));
  Descriptor low(number);
  const int high = fcntl(number, F_DUPFD_CLOEXEC, kFirstOfOurs);
  ensure(high >= 0, Fault::backend, "[ttnn] no {} for the worker: {}", what, strerror(errno));
  return Descriptor(high);
}

Descriptor memory_file(const char* name) {
  return checked(memfd_create(name, MFD_CLOEXEC), "shared memory");
}

void write_scripts(const std::string& folder) {
  const auto write = [&](const char* name, const char* begin, const char* end) {
    std::ofstream file(folder + "/" + name, std::ios::binary);
    file.write(begin, end - begin);
    file.close();
    ensure(file.good(), Fault::backend, "[ttnn] {}/{} cannot be written: {}", folder, name,
           strerror(errno));
  };
  write("worker.py", tendon_ttnn_worker, tendon_ttnn_worker_end);
  write("worker_files.py", tendon_ttnn_files, tendon_ttnn_files_end);
  write("worker_keeper.py", tendon_ttnn_keeper, tendon_ttnn_keeper_end);
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> found;
  found.reserve(words.size() + 1);
  for (const std::string& word : words) found.push_back(const_cast<char*>(word.c_str()));
  found.push_back(nullptr);
  return found;
}

int ms_until(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// Waits until `socket` can do what `events` says.
WorkerProcess::Received wait(int socket, short events, Clock::time_point deadline) {
  pollfd entry{socket, events, 0};
  for (;;) {
    const int ready = poll(&entry, 1, ms_until(deadline));
    if (ready > 0) return WorkerProcess::Received::message;
    if (ready == 0) return WorkerProcess::Received::late;
    if (errno != EINTR) return WorkerProcess::Received::ended;
  }
}

bool is_noise(std::string_view line) {
  for (const char* word :
       {"[DEADLOCK", "RISC: ", "RISC0: ", "RISC1: ", "RISC2: ", "(TT_SIM_", "[0x", "[server] "})
    if (line.find(word) != line.npos) return true;
  return line.find_first_not_of(' ') == line.npos || line.starts_with(" --- ");
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (number_ >= 0) close(number_);
  number_ = std::exchange(other.number_, -1);
  return *this;
}

Descriptor::~Descriptor() {
  if (number_ >= 0) close(number_);
}

TemporaryFolder::TemporaryFolder()
    : path_(std::filesystem::temp_directory_path() / "tendon-ttnn-XXXXXX") {
  ensure(mkdtemp(path_.data()) != nullptr, Fault::backend, "[ttnn] no folder {} for the worker: {}",
         path_, strerror(errno));
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code gone;
  std::filesystem::remove_all(path_, gone);
}

WorkerProcess::WorkerProcess(const WorkerOptions& options,
                             const std::vector<std::string>& environment,
                             const std::vector<std::string>& arguments) {
  std::array<int, 2> pair{-1, -1}, pipe_ends{-1, -1};
  ensure(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) == 0 &&
             pipe2(pipe_ends.data(), O_CLOEXEC) == 0,
         Fault::backend, "[ttnn] no socket for the worker: {}", strerror(errno));
  socket_ = checked(pair[0], "socket");
  life_ = checked(pipe_ends[1], "pipe");
  shared_ = memory_file("tendon-ttnn-tensors");
  log_ = memory_file("tendon-ttnn-log");
  write_scripts(folder_.path());
  const Descriptor socket = checked(pair[1], "socket"), life = checked(pipe_ends[0], "pipe"),
                   null = checked(open("/dev/null", O_RDONLY | O_CLOEXEC), "/dev/null"),
                   // Opened again to append: several processes write to it.
      log = checked(open(fmt::format("/proc/self/fd/{}", log_.get()).c_str(),
                         O_WRONLY | O_APPEND | O_CLOEXEC),
                    "log");
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  for (const auto& [from, to] : {std::pair{null.get(), 0},
                                 {log.get(), 1},
                                 {log.get(), 2},
                                 {socket.get(), kSocket},
                                 {shared_.get(), kShared},
                                 {life.get(), kLife}})
    posix_spawn_file_actions_adddup2(&files, from, to);
  posix_spawn_file_actions_addclosefrom_np(&files, kLife + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;  // a caller's blocked signals are not the worker's
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  std::vector<std::string> command{options.python, "-B", folder_.path() + "/worker_keeper.py"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const int error = posix_spawnp(&keeper_, options.python.c_str(), &files, &attributes,
                                 pointers(command).data(), pointers(environment).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) keeper_ = -1;
  ensure(error == 0, Fault::backend,
         "[ttnn] '{}' is not a Python interpreter ({}); name one of an environment that has ttnn; "
         "scripts/ttnn-sim makes one",
         options.python, strerror(error));
  exit_ = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, keeper_, 0)));
}

WorkerProcess::Received WorkerProcess::send(std::span<const std::byte> packet,
                                            Clock::time_point deadline) {
  for (;;) {
    if (::send(socket_.get(), packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
      return Received::message;
    if (errno != EAGAIN && errno != EINTR) return Received::ended;
    if (const Received r = wait(socket_.get(), POLLOUT, deadline); r != Received::message) return r;
  }
}

WorkerProcess::Received WorkerProcess::receive(Clock::time_point deadline) {
  buffer_.resize(kPacketBytesMax);
  received_ = 0;
  for (;;) {
    if (const Received r = wait(socket_.get(), POLLIN, deadline); r != Received::message) return r;
    const ssize_t size = recv(socket_.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    received_ = static_cast<size_t>(std::max<ssize_t>(size, 0));
    return size > 0 ? Received::message : Received::ended;
  }
}

void WorkerProcess::end() {
  if (keeper_ < 0) return;
  life_ = Descriptor();  // the keeper sees the end of the pipe and kills all that is below it
  if (wait(exit_.get(), POLLIN, Clock::now() + std::chrono::milliseconds(kEndingMs)) !=
      Received::message)
    kill(-keeper_, SIGKILL);
  int status = 0;
  while (waitpid(keeper_, &status, 0) < 0 && errno == EINTR) {
  }
  // The keeper hands on the worker's end the way a shell does.
  const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  ending_ = code > 128 ? fmt::format("signal {} ({})", code - 128, strsignal(code - 128))
                       : fmt::format("exit code {}", code);
  keeper_ = -1;
  socket_ = Descriptor();
}

std::string WorkerProcess::last_lines() const {
  struct stat about {};
  fstat(log_.get(), &about);
  const off_t from = std::max<off_t>(about.st_size - kTailBytes, 0);
  std::string text(static_cast<size_t>(about.st_size - from), '\0');
  text.resize(
      static_cast<size_t>(std::max<ssize_t>(pread(log_.get(), text.data(), text.size(), from), 0)));
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (std::string line = text.substr(begin, end - begin); !is_noise(line))
      lines.push_back(std::move(line));
    begin = end + 1;
  }
  const size_t first = lines.size() - std::min(lines.size(), kTailLines);
  return fmt::format("{}",
                     fmt::join(lines.begin() + static_cast<ptrdiff_t>(first), lines.end(), " | "));
}

void WorkerProcess::forget_old_lines() {
  struct stat about {};
  if (fstat(log_.get(), &about) == 0 && about.st_size > kLogBytesMax)
    (void)!ftruncate(log_.get(), 0);
}

std::vector<std::string> environment_with(std::vector<std::string> all,
                                          const std::vector<std::string>& changes) {
  const auto set = [&](const std::string& entry) {
    const std::string name = entry.substr(0, entry.find('=') + 1);
    std::erase_if(all, [&](const std::string& other) { return other.starts_with(name); });
    all.push_back(entry);
  };
  for (char** entry = environ; *entry != nullptr; ++entry) set(*entry);
  for (const std::string& change : changes) set(change);
  return all;
}

std::string value_of(const std::vector<std::string>& environment, const std::string& name) {
  for (const std::string& entry : environment)
    if (entry.starts_with(name + "=")) return entry.substr(name.size() + 1);
  return "";
}

}  // namespace tendon::tt
