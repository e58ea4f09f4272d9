#include "serve/request_handler.h"

#include <algorithm>
#include <cmath>

#include "client/wire_fields.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr const char* kStrictReason =
    "Internal server error. Traceback included in previous frame.";

constexpr size_t kWarningsPerClient = 16;  // different ones, for the log
constexpr int64_t kVlaEvalVersion = 1;

// Thrown for what is not the request's form: counted under its own name.
struct Refused {
  Outcome outcome;
  std::string text;
};

// {actions: float64 [horizon, dim], policy_timing, server_timing}; a request_id comes last.
std::string write_reply(const Reply& reply) {
  FieldWriter field;
  reply_fields(reply, field);
  return field.map();
}

// RoboArena wants the array alone, as float32.
std::string write_bare_actions(const ActionChunk& actions) {
  const std::vector<float> values(actions.values.begin(), actions.values.end());
  const auto bytes = std::as_bytes(std::span(values));
  std::string out;
  msgpack::Writer(out).array("<f4", std::array{actions.rows, actions.dim},
                             {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  return out;
}

double unix_seconds_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

std::string write_envelope(const std::string& type, const FieldWriter& payload, int64_t seq) {
  FieldWriter field;
  field("type", type);
  field("payload", payload);
  field("seq", seq);
  field("timestamp", unix_seconds_now());
  return field.map();
}

// What vla-eval's harness is told of the policy, and what it shall make its benchmark send.
std::string write_hello(const ModelCard& card, int64_t seq) {
  FieldWriter observation, field;
  observation("send_state", true);
  observation("send_wrist_image", card.cameras.size() > 1);
  field("harness_version", card.server);
  field("protocol_version", kVlaEvalVersion);
  field("model_server", card.server);
  field("capabilities", FieldWriter());
  field("observation_params", observation);
  greeting_fields(card, field);
  return write_envelope("hello", field, seq);
}

// The next row of the session's chunk.
std::string write_action(Session& session) {
  const ActionChunk& chunk = session.previous;
  FieldWriter payload;
  payload("actions", PlainRow{{chunk.values.begin(), chunk.values.begin() + chunk.dim}});
  session.previous = chunk.from(1);
  return write_envelope("action", payload, session.seq);
}

}  // namespace

std::string write_greeting(const ModelCard& card, Dialect dialect) {
  if (dialect == Dialect::vla_eval) return {};
  FieldWriter field;
  if (dialect == Dialect::roboarena) {
    field("image_resolution", std::vector{224.0, 224.0});
    field("needs_wrist_camera", true);
    field("n_external_cameras", int64_t{1});
    field("needs_stereo_camera", false);
    field("needs_session_id", false);
    field("action_space", std::string(card.joint_positions ? "joint_position" : "joint_velocity"));
    return field.map();
  }
  greeting_fields(card, field);
  return field.map();
}

RequestHandler::RequestHandler(ServedPolicy policy, const RequestOptions& options, Metrics& metrics,
                               std::function<void(const std::string&)> log)
    : policy_(std::move(policy)),
      options_(options),
      metrics_(metrics),
      log_(std::move(log)),
      unix_seconds_(unix_seconds_now()) {}

double RequestHandler::observation_age_ms(double observed_at) const {
  return (unix_seconds_ - observed_at) * 1e3 + ms_between(start_, Clock::now());
}

void RequestHandler::check_age(const Request& request) const {
  if (options_.observation_age_ms_max <= 0 || !request.observed_at) return;
  const double age = observation_age_ms(*request.observed_at);
  if (age > options_.observation_age_ms_max)
    throw Refused{
        Outcome::stale,
        fmt::format("stale by {:.0f} ms: the observation is {:.0f} ms old, this server "
                    "takes at most {:.0f} ms",
                    age - options_.observation_age_ms_max, age, options_.observation_age_ms_max)};
}

// The unexecuted rows of the previous chunk: the client sends them, or the server kept the chunk
// and the client says how many of its actions were executed when the observation was taken.
std::optional<PreviousChunk> RequestHandler::previous_chunk(const Request& request,
                                                            const Session& session) const {
  ActionChunk chunk = request.prev_chunk;
  if (chunk.rows == 0 && options_.rtc && request.actions_consumed)
    chunk = session.previous.from(*request.actions_consumed);
  if (chunk.rows == 0) return {};
  std::optional<int64_t> delay;
  if (options_.control_hz > 0)
    delay = std::min(chunk.rows, static_cast<int64_t>(std::ceil(session.latency_ms_max *
                                                                options_.control_hz / 1e3)));
  return guidance_by(std::move(chunk), request, delay, policy_.card.horizon);
}

void RequestHandler::guard(const Actions& actions) const {
  if (options_.guard_factor <= 0) return;
  for (size_t i = 0; i < actions.values.size(); ++i) {
    const size_t d = i % static_cast<size_t>(actions.dim);
    if (d >= actions.low.size()) continue;
    const double middle = (actions.low[d] + actions.high[d]) / 2;
    const double reach = options_.guard_factor * (actions.high[d] - actions.low[d]) / 2;
    if (std::abs(actions.values[i] - middle) <= reach) continue;
    throw Refused{
        Outcome::guarded,
        fmt::format("action {} of row {} is {:.4g}, beyond {:.4g} to {:.4g} (--guard-factor "
                    "{}): not sent",
                    d, i / static_cast<size_t>(actions.dim), actions.values[i], middle - reach,
                    middle + reach, options_.guard_factor)};
  }
}

void RequestHandler::failed(const std::string& text) {
  if (++failures_ == options_.failures_max)
    metrics_.set_state(ServerState::failed,
                       fmt::format("{} failures in a row, the last: {}", failures_, text));
}

Answer RequestHandler::refuse(const QueuedRequest& queued, Outcome outcome, const std::string& text,
                              bool internal) {
  metrics_.count(outcome);
  ++queued.session->errors;
  log_(fmt::format("client {}: {}: {}", queued.session->id, name(outcome), text));
  Answer answer{.message = text, .text = true};
  if (options_.dialect == Dialect::vla_eval) {
    FieldWriter payload;
    payload("error", text);
    answer = {.message = write_envelope("error", payload, queued.session->seq)};
  }
  if (options_.strict_openpi || internal) {
    answer.close = CloseCode::internal_error;
    answer.close_reason = options_.strict_openpi ? kStrictReason : "internal error";
  }
  return answer;
}

InferOptions RequestHandler::infer_options(const QueuedRequest& queued, const Request& request) {
  InferOptions infer;
  const uint64_t own = options_.fresh_noise ? options_.seed + requests_ : options_.seed;
  infer.seed = request.seed.value_or(queued.seed.value_or(own));
  infer.noise.assign(request.noise.values.begin(), request.noise.values.end());
  infer.previous = previous_chunk(request, *queued.session);
  ++requests_;
  return infer;
}

Reply RequestHandler::reply_to(const Request& request, const InferOptions& infer, Actions& actions,
                               const FieldWriter& call_timing, int64_t reply_id) const {
  std::optional<double> observation_age;
  if (request.observed_at) observation_age = observation_age_ms(*request.observed_at);
  std::optional<int64_t> delay;
  if (infer.previous) delay = infer.previous->delay;
  Reply reply{{actions.horizon, actions.dim, std::move(actions.values)}};
  reply.policy_timing("infer_ms", network_ms(actions.times));
  reply.server_timing = call_timing;
  reply.server_timing("observation_age_ms", observation_age);
  reply.server_timing("reply_id", reply_id);
  reply.server_timing("inference_delay", delay);
  reply.request_id = request.request_id;
  return reply;
}

void RequestHandler::warn(const std::vector<std::string>& warnings, Session& session) {
  for (const std::string& text : warnings) {
    const std::string warning = escaped(text);  // it may have a peer's camera names
    metrics_.warn(warning);
    if (session.warned.size() < kWarningsPerClient && session.warned.insert(warning).second)
      log_(fmt::format("client {}: warning: {}", session.id, warning));
  }
}

Answer RequestHandler::answer_requests(const QueuedRequest& queued, const Requests& requests,
                                       double decode_ms) {
  Session& session = *queued.session;
  const double queue_ms = ms_between(queued.received, Clock::now()) - decode_ms;
  const double prev_total_ms = session.prev_total_ms;
  const std::vector<BatchRow> rows = batch_rows(requests, [&](const Request& request) {
    if (request.deadline_ms && queue_ms + decode_ms > *request.deadline_ms)
      throw Refused{Outcome::deadline_missed,
                    fmt::format("the request waited {:.0f} ms, its deadline_ms is {:.0f}", queue_ms,
                                *request.deadline_ms)};
    check_age(request);
    return infer_options(queued, request);
  });
  chunks_ = std::ssize(rows);
  const Clock::time_point begin = Clock::now();
  std::vector<Actions> chunks = policy_.infer(rows);
  const double infer_ms = ms_between(begin, Clock::now());
  for (const Actions& actions : chunks) guard(actions);
  for (const Request& request : requests.rows) warn(request.warnings, session);
  for (const Actions& actions : chunks) warn(actions.warnings, session);
  if (failures_ >= options_.failures_max)
    metrics_.set_state(ServerState::ready, "answering requests");
  failures_ = 0;

  const Clock::time_point encode_begin = Clock::now();
  const StageTimes& stages = chunks[0].times;  // of all rows
  FieldWriter call_timing;
  call_timing("infer_ms", infer_ms);
  if (prev_total_ms >= 0) call_timing("prev_total_ms", prev_total_ms);
  call_timing("queue_ms", queue_ms);
  call_timing("decode_ms", decode_ms);
  stage_fields(stages, call_timing);
  Answer answer{.seed = rows[0].options.seed};
  if (requests.list) msgpack::Writer(answer.message).list(std::ssize(rows));
  ActionChunk first;
  size_t r = 0;
  for (const Request& request : requests.rows)
    for (int64_t s = 0; s < request.samples; ++s, ++r) {
      Reply reply = reply_to(request, rows[r].options, chunks[r], call_timing, session.replies);
      answer.message += write_rows(reply, session);
      if (r == 0) first = std::move(static_cast<ActionChunk&>(reply));
    }
  const Clock::time_point done = Clock::now();
  const double total_ms = ms_between(queued.received, done);
  // The first inference of a connection pays for connecting and warming up: it is no sample.
  if (session.replies++ > 0) session.latency_ms_max = std::max(session.latency_ms_max, total_ms);
  if (options_.rtc && !requests.list) session.previous = first;
  session.turns_owed = std::ssize(rows) - 1;
  ++session.answered;
  metrics_.answered({queue_ms, decode_ms, stages.preprocess_ms, stages.vision_ms, stages.prefill_ms,
                     stages.denoise_ms, stages.postprocess_ms, ms_between(encode_begin, done)},
                    total_ms, chunks[0].state_outside,
                    {session.id, std::move(first), chunks[0].low, chunks[0].high});
  return answer;
}

std::string RequestHandler::write_rows(const Reply& reply, Session& session) const {
  if (options_.dialect == Dialect::openpi) return write_reply(reply);
  if (options_.dialect == Dialect::roboarena) return write_bare_actions(reply);
  session.previous = static_cast<const ActionChunk&>(reply);
  if (options_.chunk_steps > 0 && options_.chunk_steps < reply.rows) {
    session.previous.rows = options_.chunk_steps;
    session.previous.values.resize(static_cast<size_t>(options_.chunk_steps * reply.dim));
  }
  return write_action(session);
}

// A chunk is handed out row by row, an observation each; an episode begins without one.
Answer RequestHandler::answer_envelope(const QueuedRequest& queued, const msgpack::Value& message,
                                       Clock::time_point begin) {
  Session& session = *queued.session;
  session.seq = 0;
  const Envelope envelope = read_envelope(message);
  session.seq = envelope.seq;
  if (envelope.type == "hello") {
    const msgpack::Value* version = envelope.payload->find("protocol_version");
    ensure(!version || version->integer == kVlaEvalVersion, Fault::input,
           "'protocol_version' is {}, expected {}", version ? version->integer : 0,
           kVlaEvalVersion);
    return {.message = write_hello(policy_.card, session.seq)};
  }
  if (envelope.type != "observation") {
    session.previous = {};
    return {};
  }
  if (session.previous.rows == 0)
    return answer_requests(queued, read_requests(*envelope.payload, policy_.card, options_.dialect),
                           ms_between(begin, Clock::now()));
  ++session.answered;
  return {.message = write_action(session)};
}

Answer RequestHandler::answer_or_refuse(const QueuedRequest& queued) {
  try {
    const Clock::time_point begin = Clock::now();
    const msgpack::Value message = msgpack::decode(queued.message);
    if (options_.dialect == Dialect::vla_eval) return answer_envelope(queued, message, begin);
    const Requests requests = read_requests(message, policy_.card, options_.dialect);
    if (requests.rows[0].reset) {
      queued.session->previous = {};
      return {.message = "reset successful", .text = true};
    }
    return answer_requests(queued, requests, ms_between(begin, Clock::now()));
  } catch (const Refused& refused) {
    if (refused.outcome == Outcome::guarded) failed(refused.text);
    return refuse(queued, refused.outcome, refused.text, false);
  } catch (const Error& error) {
    if (error.fault() == Fault::input) return refuse(queued, Outcome::refused, error.what(), false);
    if (error.fault() == Fault::backend)  // a lost device does not come back
      failures_ = std::max(failures_, options_.failures_max - 1);
    failed(error.what());
    log_(error.what());
    // Messages of a device may name files of this machine.
    const bool own = error.fault() == Fault::internal;
    return refuse(queued, Outcome::failed,
                  own ? error.what() : "the policy failed; the server's log says why", true);
  } catch (const std::exception& error) {
    failed(error.what());
    log_(error.what());
    return refuse(queued, Outcome::failed, "the policy failed; the server's log says why", true);
  }
}

Answer RequestHandler::answer(const QueuedRequest& queued) {
  try {
    return answer_or_refuse(queued);
  } catch (const std::bad_alloc&) {  // not even for saying why: the text is one that needs none
    metrics_.count(Outcome::failed);
    ++queued.session->errors;
    return {.message = "out of memory", .text = true, .close = CloseCode::internal_error};
  }
}

}  // namespace tendon
