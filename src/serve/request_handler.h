// One message in, one message out: decoding, real-time chunking, the policy, the guards. Runs on
// the inference thread.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>

#include "client/wire_fields.h"
#include "serve/metrics.h"
#include "serve/model_card.h"
#include "serve/network.h"
#include "serve/request.h"
#include "serve/session.h"

namespace tendon {

struct RequestOptions {
  Dialect dialect = Dialect::openpi;
  uint64_t seed = 0;         // of the noise, the same for every request
  bool fresh_noise = false;  // seed + number of the request instead
  bool rtc = false;          // keep each connection's last chunk for requests with actions_consumed
  double control_hz = 0;     // actions per second: lets the server estimate inference_delay
  double observation_age_ms_max = 0;  // older ones are refused; 0: any
  double guard_factor = 0;  // actions at most this many half widths of q01..q99 from its middle; 0:
                            // unchecked
  int failures_max = 3;     // in a row; then the server is not ready
  bool strict_openpi = false;  // close with 1011 after every error
  int64_t chunk_steps = 0;     // vla-eval: rows that are executed before the next inference; 0: all
};

struct Answer {
  std::string message;  // empty: there is none
  bool text = false;    // an error
  std::optional<CloseCode> close;
  std::string close_reason;
  uint64_t seed = 0;  // that was used
};

// The first message of a connection; empty where the client speaks first.
std::string write_greeting(const ModelCard& card, Dialect dialect);

class RequestHandler {
 public:
  // `log` gets one line per refused request.
  RequestHandler(ServedPolicy policy, const RequestOptions& options, Metrics& metrics,
                 std::function<void(const std::string&)> log);

  // Never throws for what a peer sent or the policy could not do: that is the answer.
  Answer answer(const QueuedRequest& request);

  // That the last message asks for; from any thread.
  int64_t chunks() const { return chunks_; }

 private:
  Answer answer_or_refuse(const QueuedRequest& queued);
  Answer answer_envelope(const QueuedRequest& queued, const msgpack::Value& message,
                         Clock::time_point begin);
  std::string write_rows(const Reply& reply, Session& session) const;
  void warn(const std::vector<std::string>& warnings, Session& session);
  Answer answer_requests(const QueuedRequest& queued, const Requests& requests, double decode_ms);
  InferOptions infer_options(const QueuedRequest& queued, const Request& request);
  Reply reply_to(const Request& request, const InferOptions& infer, Actions& actions,
                 const FieldWriter& call_timing, int64_t reply_id) const;
  Answer refuse(const QueuedRequest& queued, Outcome outcome, const std::string& text,
                bool internal);
  void check_age(const Request& request) const;
  double observation_age_ms(double observed_at) const;
  std::optional<PreviousChunk> previous_chunk(const Request& request, const Session& session) const;
  void guard(const Actions& actions) const;
  void failed(const std::string& text);

  ServedPolicy policy_;
  RequestOptions options_;
  Metrics& metrics_;
  std::function<void(const std::string&)> log_;
  std::atomic<int64_t> chunks_ = 1;
  uint64_t requests_ = 0;
  int failures_ = 0;  // in a row
  // Wall time is asked once: later jumps of the clock have no effect.
  const double unix_seconds_;
  const Clock::time_point start_ = Clock::now();
};

}  // namespace tendon
