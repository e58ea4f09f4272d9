// One connected robot, and the queue of requests that the inference thread serves in turn.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "serve/network.h"
#include "tendon/client.h"

namespace tendon {

using Clock = std::chrono::steady_clock;  // wall clocks jump
inline double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

struct Session {
  ConnectionId id = 0;
  Peer peer;
  bool latest_wins = false;  // "?queue=latest": a newer request replaces the one that waits
  Clock::time_point since = Clock::now();

  // Written by one thread, read by the other.
  std::atomic<int64_t> answered = 0, skipped = 0, errors = 0;
  std::atomic<int> queued = 0;
  std::atomic<double> prev_total_ms = -1;          // below 0: nothing was sent yet
  std::atomic<Clock::rep> last_request_ticks = 0;  // of Clock; 0: none yet
  std::atomic<double> rate_hz = 0;                 // smoothed over about ten requests

  // Of the I/O thread alone: when the request came whose reply is being sent.
  std::optional<Clock::time_point> replying;

  // Of the inference thread alone.
  int64_t replies = 0;
  int64_t turns_owed = 0;        // a batch takes as many turns as it has rows
  ActionChunk previous;          // --rtc: the last reply; vla-eval: what is left of it
  int64_t seq = 0;               // vla-eval: of the message that is answered
  std::set<std::string> warned;  // what the log has said of its requests
  double latency_ms_max = 0;     // received to replied; the first is no sample
};

using Sessions = std::map<ConnectionId, std::shared_ptr<Session>>;  // of open connections

struct QueuedRequest {
  std::shared_ptr<Session> session;
  Bytes message;
  Clock::time_point received;
  std::optional<uint64_t> seed = {};  // of a replayed request
};

// Connections take turns, as many for a batch as it has rows, each with at most two requests: one
// that waits and one read ahead. With latest_wins it has one. Safe for one thread that puts and one
// that takes.
class RequestQueue {
 public:
  struct Put {
    bool replaced;  // one that waited
    bool full;      // no further request of this connection before one is taken
  };
  Put put(QueuedRequest request);
  // The next in turn; waits for it. Nothing once closed.
  std::optional<QueuedRequest> take();
  void forget(ConnectionId id);  // its requests, too
  void close();                  // take() gives nothing from now on

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<ConnectionId, std::vector<QueuedRequest>> waiting_;  // none is empty
  ConnectionId last_ = 0;  // served last: the next in turn has the next larger id
  bool closed_ = false;
};

}  // namespace tendon
