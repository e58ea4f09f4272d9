// What `tendon serve` answers, without its sockets: for endpoints of other servers.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "serve/metrics.h"
#include "serve/request_handler.h"

namespace tendon::python {

class Answering {
 public:
  // Opens `model` and runs it once. Throws what open_served() throws.
  Answering(const std::string& model, const nanobind::dict& options);

  nanobind::bytes greeting() const;
  ConnectionId connect();
  void disconnect(ConnectionId id);
  // (message, whether it is an error's text, the code to close with or None). Calls of several
  // threads take turns; those of one connection come one after the other.
  nanobind::tuple answer(ConnectionId id, const nanobind::bytes& message);
  // Messages that wait or are being answered.
  int64_t waiting() const { return waiting_; }
  std::string failure() const;  // why the policy serves no more; "" as long as it does
  std::string fingerprint() const { return fingerprint_; }

 private:
  Metrics metrics_;
  std::unique_ptr<RequestHandler> handler_;
  std::string greeting_, fingerprint_;
  std::mutex turn_, sessions_mutex_;
  Sessions sessions_;
  ConnectionId last_ = 0;
  std::atomic<int64_t> waiting_ = 0;
};

}  // namespace tendon::python
