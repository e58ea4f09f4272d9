// A Python process with one socket, one shared memory file and everything that runs below it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

using Clock = std::chrono::steady_clock;

class Descriptor {  // closes itself
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return number_; }

 private:
  int number_ = -1;
};

class TemporaryFolder {  // removes itself and what is in it
 public:
  TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class WorkerProcess {
 public:
  enum class Received : uint8_t { message, ended, late };

  // Throws Error(Fault::backend) when the interpreter cannot be started.
  WorkerProcess(const WorkerOptions& options, const std::vector<std::string>& environment,
                const std::vector<std::string>& arguments);
  WorkerProcess(const WorkerProcess&) = delete;
  ~WorkerProcess() { end(); }

  // Not `message`: nobody reads packets any more.
  Received send(std::span<const std::byte> packet, Clock::time_point deadline);
  Received receive(Clock::time_point deadline);
  std::span<const std::byte> packet() const { return {buffer_.data(), received_}; }  // the last one

  // Kills whatever runs below, the simulator too, and waits until it is gone.
  void end();
  // After end(): "exit code 3" or "signal 11 (Segmentation fault)".
  const std::string& ending() const { return ending_; }
  // What the process printed last, without the simulator's reports of idle cores.
  std::string last_lines() const;
  void forget_old_lines();  // keeps a chatty library from filling the memory

  int shared_memory() const { return shared_.get(); }

 private:
  TemporaryFolder folder_;  // the keeper removes it too, should this process be killed
  Descriptor socket_, shared_, life_, log_, exit_;
  std::vector<std::byte> buffer_;
  size_t received_ = 0;
  pid_t keeper_ = -1;
  std::string ending_;
};

// `defaults`, then the parent's environment, then `changes` ("NAME=value"); the last one holds.
std::vector<std::string> environment_with(std::vector<std::string> defaults,
                                          const std::vector<std::string>& changes);
// The value of NAME in such a list, "" if it is not there.
std::string value_of(const std::vector<std::string>& environment, const std::string& name);

}  // namespace tendon::tt
