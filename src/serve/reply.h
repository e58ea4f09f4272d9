// What goes back: action chunks and the greeting, in openpi's key order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "serve/model_card.h"
#include "serve/request.h"
#include "tendon/types.h"

namespace tendon {

// Milliseconds, and the counters that make staleness visible.
struct ReplyTimes {
  double infer_ms = 0;                  // preprocess to postprocess
  std::optional<double> prev_total_ms;  // of this connection's previous request: received to sent
  double queue_ms = 0, decode_ms = 0;
  std::optional<double> observation_age_ms;  // when the reply was made, by `observed_at`
  int64_t reply_id = 0;                      // rises by one per reply of the connection
  std::optional<int64_t> inference_delay;    // that guided the chunk
};

// {actions: float64 [horizon, dim], policy_timing, server_timing}; a request_id comes last.
std::string write_reply(const Actions& actions, const Request& request, const ReplyTimes& times);

// RoboArena wants the array alone, as float32.
std::string write_bare_actions(const Actions& actions);

// The first message of a connection.
std::string write_greeting(const ModelCard& card, Dialect dialect);

}  // namespace tendon
