// What a test sees of a worker from outside: its processes, from /proc, and the time it takes.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "ttnn_board.h"

namespace tendon::tt {

struct Running {
  pid_t id = 0;
  std::string command;  // arguments, separated by zeros
};

// Empty for a process that has ended, also while it waits for its parent.
inline std::string command_of(pid_t id) {
  std::ifstream file("/proc/" + std::to_string(id) + "/cmdline", std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();  // swallows the error of a process that has ended meanwhile
  return text.str();
}

// Everything below `root`, parents before children.
inline std::vector<Running> below(pid_t root) {
  std::vector<Running> found;
  std::error_code gone;
  const std::string tasks = "/proc/" + std::to_string(root) + "/task";
  for (std::filesystem::directory_iterator task(tasks, gone), end; task != end;
       task.increment(gone)) {
    std::ifstream children(task->path() / "children");
    for (pid_t id = 0; children >> id;) {
      if (const std::string command = command_of(id); !command.empty())
        found.push_back({id, command});
      const std::vector<Running> more = below(id);
      found.insert(found.end(), more.begin(), more.end());
    }
  }
  return found;
}

// True once none of them runs any more.
inline bool all_end(const std::vector<Running>& watched, double seconds = 60) {
  const auto runs = [](const Running& r) { return command_of(r.id) == r.command; };
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::ranges::any_of(watched, runs)) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

// The first whose command holds `piece`.
inline Running find_running(const std::vector<Running>& all, const std::string& piece) {
  for (const Running& r : all)
    if (r.command.find(piece) != r.command.npos) return r;
  return {};
}

// Everything below `root` once a command there holds `piece`: a process has no command for the
// moment in which exec replaces it.
inline std::vector<Running> await_running(pid_t root, const std::string& piece) {
  std::vector<Running> found = below(root);
  for (int i = 0; i < 3000 && !find_running(found, piece).id; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    found = below(root);
  }
  return found;
}

// A process that holds a worker is killed: keeper, worker and the simulator, whose command holds
// `simulator`, end with it.
inline void expect_all_end_with_tendon(const WorkerOptions& options, const std::string& simulator) {
  const pid_t tendon = fork();
  if (tendon == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // in case this test itself is ended
    const Board board(open_worker(options));
    pause();
  }
  const std::vector<Running> family = await_running(tendon, simulator);
  EXPECT_EQ(family.size(), 3U) << "keeper, worker, simulator";
  kill(tendon, SIGKILL);
  waitpid(tendon, nullptr, 0);
  EXPECT_TRUE(all_end(family));
}

// Runs a call that must fail because of `trouble` 0.3 s later. Nothing of `family` may be left
// then, and the device stays lost. The error.
inline std::string lose(
    Board& board, const Request& request, const std::vector<Running>& family,
    const std::function<void()>& trouble = [] {}) {
  std::thread troubling([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    trouble();
  });
  std::string error = board.refusal(request, Fault::backend);
  troubling.join();
  EXPECT_TRUE(all_end(family, 0.5));
  EXPECT_EQ(board.refusal(request, Fault::backend), error) << "the first error is the one to read";
  return error;
}

inline std::set<std::string> shared_memory_names() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm"))
    names.insert(entry.path().filename());
  return names;
}

}  // namespace tendon::tt
