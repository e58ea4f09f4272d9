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

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();  // swallows the error of a process that has ended meanwhile
  return text.str();
}

struct Running {
  pid_t id = 0, parent = 0;
  char state = '?';
  std::string command;  // arguments, separated by zeros
};

inline std::vector<Running> all_running() {
  std::vector<Running> found;
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != name.npos) continue;
    const std::string stat = file_text(entry.path() / "stat");
    const size_t end = stat.rfind(')');
    if (end == stat.npos) continue;  // it has ended meanwhile
    found.push_back({std::stoi(name), std::stoi(stat.substr(end + 4)), stat[end + 2],
                     file_text(entry.path() / "cmdline")});
  }
  return found;
}

// Everything below `root`, parents before children.
inline std::vector<Running> below(pid_t root) {
  std::vector<Running> found;
  std::set<pid_t> family{root};
  for (size_t before = 0; before != family.size();) {
    before = family.size();
    for (const Running& r : all_running())
      if (family.contains(r.parent) && family.insert(r.id).second) found.push_back(r);
  }
  return found;
}

// True once none of them runs any more (waiting for its parent counts as gone).
inline bool all_end(const std::vector<Running>& watched, double seconds = 60) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < deadline) {
    bool any = false;
    for (const Running& now : all_running())
      for (const Running& then : watched)
        any |= now.id == then.id && now.command == then.command && now.state != 'Z';
    if (!any) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

// The processes of the worker that this process holds, and which of them is which.
inline Running find_running(const std::vector<Running>& all, const std::string& piece) {
  for (const Running& r : all)
    if (r.command.find(piece) != r.command.npos) return r;
  return {};
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
  std::vector<Running> family;
  for (int i = 0; i < 3000 && !find_running(family, simulator).id; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    family = below(tendon);
  }
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
