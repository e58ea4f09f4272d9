// From a decoded message to an observation: the key layouts of openpi's robots and of lerobot.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "client/msgpack.h"
#include "serve/model_card.h"
#include "tendon/client.h"

namespace tendon {

enum class Dialect {
  openpi,
  roboarena,  // key `endpoint` (infer or reset), actions alone as the reply
  vla_eval,   // allenai's evaluation harness: envelopes, an action for every observation
};

// vla-eval's messages, {type, payload, seq, timestamp}; the payload is a map.
struct Envelope {
  std::string_view type;
  int64_t seq = 0;  // an answer repeats it
  const msgpack::Value* payload = nullptr;
};
// Throws Error(Fault::input) also for types that a client does not send.
Envelope read_envelope(const msgpack::Value& message);

struct Request : RemoteOptions {
  Observation observation;            // uint8 pictures are views into the message
  bool reset = false;                 // roboarena: a new episode begins
  int64_t samples = 1;                // chunks to be drawn for this observation
  std::vector<std::string> warnings;  // what was guessed while it was read
};

// The requests of one message, whose observations are views into it.
struct Requests {
  std::vector<Request> rows;
  bool list = false;  // the answer is a list, too: {"batch": [request, ...]}, or num_samples
};

// Throws Error(Fault::input) naming the key, what was got and what was wanted. What the message
// holds beyond the known keys is ignored. Of vla-eval, `message` is the payload of an observation.
Request read_request(const msgpack::Value& message, const ModelCard& card, Dialect dialect);

constexpr int64_t kRowsMax = 64;  // of one message
// Also of a message of several, in openpi's dialect: 1 to kRowsMax chunks in all. An error names
// the row.
Requests read_requests(const msgpack::Value& message, const ModelCard& card, Dialect dialect);

// A row per chunk of `requests`, which must outlive it, with what `options_of` gives for its
// request; the seeds of a request's samples count on. An Error of `options_of` names the row.
std::vector<BatchRow> batch_rows(const Requests& requests,
                                 const std::function<InferOptions(const Request&)>& options_of);

// Guidance by `left`, the rows of the previous chunk that were not executed when the observation of
// `request` was taken. `delay`: actions that will be executed before the reply arrives, where the
// request does not say. Throws Error(Fault::input) when nobody does, or for more than are left.
PreviousChunk guidance_by(ActionChunk left, const RemoteOptions& request,
                          std::optional<int64_t> delay, int64_t horizon);

// A peer's words for a message or the log: at most 200 bytes, all but printable ASCII as \x1b.
std::string escaped(std::string_view text);

// openpi's rule: three planes if the first size is 3, else rows of pixels; float pictures in
// [0, 1] become trunc(255 x).
Image read_picture(const msgpack::Value& value, std::string_view key);

}  // namespace tendon
