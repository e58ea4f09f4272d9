// The keys of openpi's protocol and of tendon's additions, each once, in their order on the wire.
// The server writes greetings and replies and reads requests by these lists; the client does the
// opposite. A new field is a member of its struct and a line here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "client/msgpack.h"
#include "tendon/client.h"

namespace tendon {

// What a server takes for a field: whole numbers from `low` to `high`, which is the policy's
// horizon where it is absent; a table with as many columns as one of the policy's sizes.
struct Whole {
  int64_t low = 0;
  std::optional<int64_t> high = {};
};
enum class Columns { action_dim, model_action_dim };

// `field` is called with key, value and, in requests, what the server takes for it.
template <class Policy, class Field>
void greeting_fields(Policy& policy, Field&& field) {
  field("reset_pose", policy.reset_pose);
  field("model", policy.model);
  field("robot", policy.robot);
  field("action_horizon", policy.horizon);
  field("action_names", policy.action_names);
  field("cameras", policy.cameras);
  field("demo", policy.demo);
  field("server", policy.server);
  field("fingerprint", policy.fingerprint);
}

// Beside the observation.
template <class Options, class Field>
void request_fields(Options& options, Field&& field) {
  field("seed", options.seed, Whole{.high = int64_t{1} << 53});  // beyond, doubles have gaps
  field("noise", options.noise, Columns::model_action_dim);
  field("request_id", options.request_id);
  field("deadline_ms", options.deadline_ms);
  field("observed_at", options.observed_at);
  field("prev_chunk", options.prev_chunk, Columns::action_dim);
  field("inference_delay", options.inference_delay, Whole{});
  field("execution_horizon", options.execution_horizon, Whole{.low = 1});
  field("actions_consumed", options.actions_consumed, Whole{});
}

template <class AnyReply, class Field>
void reply_fields(AnyReply& reply, Field&& field) {
  std::conditional_t<std::is_const_v<AnyReply>, const ActionChunk, ActionChunk>& actions = reply;
  field("actions", actions);
  field("policy_timing", reply.policy_timing);
  field("server_timing", reply.server_timing);
  field("request_id", reply.request_id);
}

// Within a reply's timing: the stages of one call in milliseconds.
template <class Field>
void stage_fields(const StageTimes& times, Field&& field) {
  field("preprocess_ms", times.preprocess_ms);
  field("vision_ms", times.vision_ms);
  field("prefill_ms", times.prefill_ms);
  field("denoise_ms", times.denoise_ms);
  field("postprocess_ms", times.postprocess_ms);
}
// Of the network alone.
inline double network_ms(const StageTimes& times) {
  return times.vision_ms + times.prefill_ms + times.denoise_ms;
}

// Numbers as vla-eval packs an array of one axis.
struct PlainRow {
  std::vector<float> values;
};

// Writes the entries of a map; a field without a value is left out. Throws Error(Fault::input) for
// numbers that are not finite and chunks whose values are not rows * dim.
class FieldWriter {
 public:
  template <class T, class... Accepted>
  void operator()(std::string_view key, const T& value, const Accepted&...) {
    write(key, value);
  }
  int64_t entries() const { return entries_; }
  const std::string& bytes() const { return bytes_; }
  std::string map() const;

 private:
  template <class T>
  void write(std::string_view key, const std::optional<T>& value) {
    if (value) write(key, *value);
  }
  void write(std::string_view key, const std::string& text) { at(key).text(text); }
  void write(std::string_view key, bool truth) { at(key).boolean(truth); }
  void write(std::string_view key, int64_t whole) { at(key).integer(whole); }
  void write(std::string_view key, uint64_t whole) { write(key, static_cast<int64_t>(whole)); }
  void write(std::string_view key, double number);
  void write(std::string_view key, const std::vector<std::string>& texts);
  void write(std::string_view key, const std::vector<double>& numbers);  // none: left out
  void write(std::string_view key, const ActionChunk& chunk);            // no rows: left out
  void write(std::string_view key, const PlainRow& row);
  void write(std::string_view key, const FieldWriter& map);
  template <class... Kinds>
  void write(std::string_view key, const std::variant<Kinds...>& value) {
    std::visit([&](const auto& kind) { write(key, kind); }, value);
  }
  msgpack::Writer at(std::string_view key);

  std::string bytes_;
  int64_t entries_ = 0;
};

// What a server sends; its client has RemoteActions for it.
struct Reply : ActionChunk {
  FieldWriter policy_timing, server_timing;
  std::optional<RequestId> request_id;
};

// What a peer says about itself is a convenience: fields of another type count as absent.
RemotePolicy read_greeting(const msgpack::Value& map);

// In openpi's form, or RoboArena's, the actions alone. Throws Error(Fault::input) where they are no
// array [rows, dim]; whether they are finite is not looked at.
RemoteActions read_reply(const msgpack::Value& reply);

// The same of a list of such, which is not empty, or of one.
PolicyClient::Replies read_replies(const msgpack::Value& reply);

// Throws Error(Fault::input) for the first value that is not finite, by key and place.
void check_finite(std::span<const double> values, std::string_view key);

}  // namespace tendon
