// A policy in this process, and one behind a server, as Python has them.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "serve/model_card.h"
#include "tendon/client.h"
#include "tendon/tendon.h"

namespace tendon::python {

// Whose turn it is, in the process that made it. Threads take turns; a forked child is refused: it
// has none of the engine's threads and shares the connection's bytes.
class Turns {
 public:
  // Waits without the GIL, which the caller has released; `poll` may end it.
  std::unique_lock<std::timed_mutex> take(const std::function<void()>& poll);
  bool is_own_process() const;

 private:
  std::timed_mutex mutex_;
  const int pid_ = own_pid();
  static int own_pid();
};

class LocalPolicy {
 public:
  LocalPolicy(const std::string& model, const nanobind::dict& options, nanobind::object progress);
  ~LocalPolicy();

  // What a server answers to `message`, one observation or {"batch": [observation, ...]}, with
  // `additions`, keys that replace those of each: a dictionary, or a list of them.
  nanobind::object infer(const nanobind::dict& message, const nanobind::dict& additions,
                         std::optional<int64_t> steps);
  nanobind::dict metadata() const;
  std::vector<std::string> notes() const { return card_.notes; }

 private:
  std::unique_ptr<Engine> engine_;
  ModelCard card_;
  Turns turns_;
};

class ServedByOthers {
 public:
  ServedByOthers(const std::string& url, const std::string& api_key, double timeout_s);
  ~ServedByOthers();

  nanobind::object infer(const nanobind::dict& message, const nanobind::dict& additions);
  nanobind::dict metadata() const;
  void close();

 private:
  std::unique_ptr<PolicyClient> client_;
  Turns turns_;
};

}  // namespace tendon::python
