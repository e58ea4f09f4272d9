// From a decoded message to an observation: the key layouts of openpi's robots and of lerobot.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/model_card.h"
#include "serve/msgpack.h"

namespace tendon {

enum class Dialect {
  openpi,
  roboarena,  // key `endpoint` (infer or reset), actions alone as the reply
};

struct Request {
  Observation observation;  // uint8 pictures are views into the message
  bool reset = false;       // roboarena: a new episode begins
  // Keys that stock clients never send; see docs/serving.md.
  std::optional<uint64_t> seed;
  std::vector<float> noise;            // [horizon, model action_dim]
  std::optional<msgpack::Value> id;    // text or integer, goes back as it came
  std::optional<double> deadline_ms;   // refuse rather than answer later than this
  std::optional<double> observed_at;   // Unix seconds on the client's clock
  std::vector<double> previous_chunk;  // [previous_rows, action_dim] in the robot's units
  int64_t previous_rows = 0;
  std::optional<int64_t> inference_delay, execution_horizon, actions_consumed;
};

// Throws Error(Fault::input) naming the key, what was got and what was wanted. What the message
// holds beyond the known keys is ignored.
Request read_request(const msgpack::Value& message, const ModelCard& card, Dialect dialect);

// A peer's words for a message or the log: at most 200 bytes, all but printable ASCII as \x1b.
std::string escaped(std::string_view text);

// openpi's rule: three planes if the first size is 3, else rows of pixels; float pictures in
// [0, 1] become trunc(255 x).
Image read_picture(const msgpack::Value& value, std::string_view key);

}  // namespace tendon
