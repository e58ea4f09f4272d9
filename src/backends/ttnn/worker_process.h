// The Python process that holds the library, one socket to it, and everything that runs below it.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

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

class WorkerProcess {
 public:
  // Throws Error(Fault::backend) when the interpreter cannot be started.
  WorkerProcess(const WorkerOptions& options, const std::map<std::string, std::string>& environment,
                const std::string& mode);
  WorkerProcess(const WorkerProcess&) = delete;
  ~WorkerProcess() { end(); }

  // Sends a message, if it is not empty, with values, and waits for the next one that comes.
  // Nothing: the process ended, or it was late and has been ended.
  struct Message {
    std::string text;
    std::vector<float> values;
  };
  std::optional<Message> exchange(std::string_view text, std::span<const float> values,
                                  double deadline_s);
  bool late() const { return late_; }

  // Kills whatever runs below, the simulator too, and waits until it is gone.
  void end();
  // After that: "exit code 3" or "signal 11 (Segmentation fault)".
  const std::string& ending() const { return ending_; }

  // What the process printed last, without the simulator's reports of idle cores.
  std::string last_lines() const;

  // Keeps a chatty library from filling the memory.
  void forget_old_lines();

 private:
  // The current folder of what runs below.
  struct Folder {
    Folder();
    Folder(const Folder&) = delete;
    ~Folder();  // removes it, where the keeper was killed, which does otherwise
    std::string path = "/tmp/tendon-ttnn-XXXXXX";
  };

  Folder folder_;
  Descriptor socket_, log_, exit_;
  pid_t keeper_ = -1;
  bool late_ = false;
  std::string ending_;
};

}  // namespace tendon::tt
