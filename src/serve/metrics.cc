#include "serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tensor/percentile.h"
#include "tensor/resident_memory.h"

namespace tendon {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ModelCard, backend, method, robot, horizon, steps, action_dim,
                                   state_dim, cameras, action_names, demo, notes, load_ms,
                                   warm_up_ms, fingerprint)

namespace {

constexpr double kSliceSeconds = 5;
constexpr int64_t kSlices = 60;
constexpr size_t kSliceSamplesMax = 4096;  // percentiles of busier slices rest on the first ones
constexpr size_t kWarningsMax = 50;
// Upper bounds in milliseconds.
constexpr std::array<double, 15> kBounds = {1,   2,    5,    10,   20,    50,    100,  200,
                                            500, 1000, 2000, 5000, 10000, 30000, 60000};

double seconds_since(Clock::time_point from) { return ms_between(from, Clock::now()) / 1e3; }

nlohmann::json percentiles(std::vector<float> ms) {
  nlohmann::json out{{"count", ms.size()}};
  std::ranges::sort(ms);
  for (const auto& [name, part] : {std::pair("p50", .5), {"p90", .9}, {"p99", .99}, {"max", 1.}})
    out[name] = ms.empty() ? nlohmann::json()
                           : nlohmann::json(percentile(std::span<const float>(ms), part));
  return out;
}

void add(const StageMs& stage_ms, StageMs& sums) {
  for (size_t s = 0; s < sums.size(); ++s) sums[s] += stage_ms[s];
}

// In Prometheus' text, backslash, quote and newline of a label's value.
std::string label(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

nlohmann::json memory_json() {
  const std::optional<ResidentMemory> memory = own_memory_by_kind();
  if (!memory) return nullptr;
  return {{"private_bytes", memory->private_bytes}, {"shared_bytes", memory->shared_bytes}};
}

}  // namespace

std::string_view name(ServerState state) {
  constexpr std::array<std::string_view, 5> kNames = {"loading", "warming", "ready", "draining",
                                                      "failed"};
  return kNames[static_cast<size_t>(state)];
}

std::string_view name(Outcome outcome) {
  constexpr std::array<std::string_view, kOutcomes> kNames = {
      "answered", "refused", "failed", "deadline_missed", "stale", "skipped", "guarded"};
  return kNames[static_cast<size_t>(outcome)];
}

void Metrics::set_state(ServerState state, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  state_ = state;
  reason_ = reason;
}

ServerState Metrics::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

std::string Metrics::reason() const {
  const std::lock_guard lock(mutex_);
  if (state_ != ServerState::loading || !progress_ || progress_->plan.weights == 0) return reason_;
  return fmt::format("{}: {} %", reason_, 100 * progress_->bytes / progress_->plan.weights);
}

void Metrics::set_progress(const LoadProgress& progress) {
  const std::lock_guard lock(mutex_);
  progress_ = progress;
}

void Metrics::set_card(const ModelCard& card) {
  const std::lock_guard lock(mutex_);
  card_ = card;
}

void Metrics::count(Outcome outcome) {
  const std::lock_guard lock(mutex_);
  ++outcomes_[static_cast<size_t>(outcome)];
}

void Metrics::answered(const StageMs& stage_ms, double total_ms,
                       const std::vector<uint8_t>& state_outside, SentChunk chunk) {
  const std::lock_guard lock(mutex_);
  ++outcomes_[static_cast<size_t>(Outcome::answered)];
  const auto now = static_cast<int64_t>(seconds_since(start_) / kSliceSeconds);
  if (slices_.empty() || slices_.back().begin != now) slices_.push_back({.begin = now});
  while (slices_.front().begin <= now - kSlices) slices_.pop_front();
  Slice& slice = slices_.back();
  if (slice.total_ms.size() < kSliceSamplesMax) {
    slice.total_ms.push_back(static_cast<float>(total_ms));
    add(stage_ms, slice.stage_ms);
  }
  histogram_.resize(kBounds.size() + 1);
  const auto bound = std::ranges::lower_bound(kBounds, total_ms);
  ++histogram_[static_cast<size_t>(bound - kBounds.begin())];
  total_ms_ += total_ms;
  add(stage_ms, stage_sum_ms_);
  chunk_ = std::move(chunk);
  if (state_outside.empty()) return;
  outside_.resize(state_outside.size());
  for (size_t i = 0; i < outside_.size(); ++i) outside_[i] += state_outside[i];
  ++states_seen_;
}

void Metrics::warn(const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (!warnings_.contains(text) && warnings_.size() >= kWarningsMax)
    warnings_.erase(std::ranges::min_element(warnings_, {},
                                             [](const auto& entry) { return entry.second.last; }));
  Warning& warning = warnings_[text];
  ++warning.count;
  warning.last = Clock::now();
}

nlohmann::json Metrics::latency_json() const {
  std::vector<float> all;
  StageMs sums{};
  for (const Slice& slice : slices_) {
    all.insert(all.end(), slice.total_ms.begin(), slice.total_ms.end());
    add(slice.stage_ms, sums);
  }
  nlohmann::json out;
  for (size_t s = 0; s < sums.size(); ++s)
    out["stages_ms"][kStageNames[s]] =
        all.empty() ? nlohmann::json() : nlohmann::json(sums[s] / static_cast<double>(all.size()));
  out["latency_ms"] = percentiles(std::move(all));
  out["latency_ms"]["window_s"] = kSliceSeconds * kSlices;
  return out;
}

nlohmann::json Metrics::history_json() const {
  nlohmann::json rows = nlohmann::json::array();
  const double now = seconds_since(start_);
  for (const Slice& slice : slices_) {
    nlohmann::json row = percentiles(slice.total_ms);
    row["age_s"] = std::max(0.0, now - kSliceSeconds * static_cast<double>(slice.begin + 1));
    for (size_t s = 0; s < slice.stage_ms.size(); ++s)
      row["stages"][kStageNames[s]] =
          slice.stage_ms[s] / static_cast<double>(slice.total_ms.size());
    rows.push_back(std::move(row));
  }
  return rows;
}

nlohmann::json Metrics::loading_json() const {
  if (!progress_ || progress_->plan.weights == 0) return nullptr;
  const auto total = static_cast<double>(progress_->plan.weights);
  const double part = std::min(1.0, static_cast<double>(progress_->bytes) / total);
  nlohmann::json left;
  if (part > 0) left = progress_->seconds * (1 - part) / part;
  return {{"fraction", part},
          {"bytes", progress_->bytes},
          {"bytes_total", progress_->plan.weights},
          {"seconds_left", left}};
}

nlohmann::json Metrics::warnings_json() const {
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& [text, warning] : warnings_)
    rows.push_back(
        {{"text", text}, {"count", warning.count}, {"age_s", seconds_since(warning.last)}});
  return rows;
}

std::string Metrics::status_json(const Sessions& sessions) const {
  const std::string why = reason();
  const std::lock_guard lock(mutex_);
  nlohmann::json out = latency_json();
  out["state"] = name(state_);
  out["reason"] = why;
  out["loading"] = loading_json();
  out["uptime_s"] = seconds_since(start_);
  out["memory"] = memory_json();
  out["version"] = card_ ? nlohmann::json(card_->version) : nlohmann::json();
  out["model"] = card_ ? nlohmann::json(*card_) : nlohmann::json();
  if (card_) out["model"]["name"] = card_->model;
  for (size_t o = 0; o < kOutcomes; ++o)
    out["requests"][name(static_cast<Outcome>(o))] = outcomes_[o];
  out["history"] = history_json();
  out["clients"] = nlohmann::json::array();
  for (const auto& [id, s] : sessions) {
    const Clock::time_point last{Clock::duration(s->last_request_ticks.load())};
    out["clients"].push_back(
        {{"id", id},
         {"peer", s->peer.address},
         {"since_s", seconds_since(s->since)},
         {"rate_hz", s->rate_hz.load()},
         {"queued", s->queued.load()},
         {"answered", s->answered.load()},
         {"skipped", s->skipped.load()},
         {"errors", s->errors.load()},
         {"idle_s", last.time_since_epoch().count() == 0 ? nlohmann::json()
                                                         : nlohmann::json(seconds_since(last))}});
  }
  out["chunk"] = nullptr;
  if (chunk_) {
    const ActionChunk& actions = chunk_->actions;
    nlohmann::json rows = nlohmann::json::array();
    for (auto row = actions.values.begin(); row != actions.values.end(); row += actions.dim)
      rows.push_back(std::vector<double>(row, row + actions.dim));
    out["chunk"] = {{"age_s", seconds_since(chunk_->at)},
                    {"client", chunk_->client},
                    {"horizon", actions.rows},
                    {"dim", actions.dim},
                    {"names", card_ ? card_->action_names : std::vector<std::string>()},
                    {"values", std::move(rows)},
                    {"low", chunk_->low},
                    {"high", chunk_->high}};
  }
  out["state_ranges"] = nlohmann::json::array();
  for (size_t i = 0; i < outside_.size(); ++i)
    out["state_ranges"].push_back(
        {{"index", i}, {"name", ""}, {"outside", outside_[i]}, {"seen", states_seen_}});
  out["warnings"] = warnings_json();
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string Metrics::prometheus(const Sessions& sessions, const NetworkCounters& network) const {
  const std::lock_guard lock(mutex_);
  std::string out;
  const auto type = [&](const char* metric, const char* kind, const char* help) {
    out += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n", metric, kind, help);
  };
  const auto row = [&](const char* metric, const char* key, auto of, auto value) {
    out += fmt::format("{}{{{}=\"{}\"}} {}\n", metric, key, of, value);
  };
  type("tendon_ready", "gauge", "1 when requests are answered");
  out += fmt::format("tendon_ready {}\n", state_ == ServerState::ready ? 1 : 0);
  type("tendon_info", "gauge", "What is served");
  if (card_)
    out += fmt::format(
        "tendon_info{{model=\"{}\",backend=\"{}\",method=\"{}\",robot=\"{}\",version=\"{}\"}} 1\n",
        label(card_->model), label(card_->backend), label(card_->method), label(card_->robot),
        label(card_->version));
  type("tendon_requests_total", "counter", "Requests by outcome");
  for (size_t o = 0; o < kOutcomes; ++o)
    row("tendon_requests_total", "outcome", name(static_cast<Outcome>(o)), outcomes_[o]);
  type("tendon_request_seconds", "histogram", "From the last byte of a request to its reply");
  int64_t below = 0;
  for (size_t b = 0; b < kBounds.size(); ++b) {
    below += b < histogram_.size() ? histogram_[b] : 0;
    row("tendon_request_seconds_bucket", "le", kBounds[b] / 1e3, below);
  }
  const int64_t all = outcomes_[static_cast<size_t>(Outcome::answered)];
  row("tendon_request_seconds_bucket", "le", "+Inf", all);
  out += fmt::format("tendon_request_seconds_sum {}\ntendon_request_seconds_count {}\n",
                     total_ms_ / 1e3, all);
  type("tendon_stage_seconds_total", "counter", "Time in each stage of answered requests");
  for (size_t s = 0; s < stage_sum_ms_.size(); ++s)
    row("tendon_stage_seconds_total", "stage", kStageNames[s], stage_sum_ms_[s] / 1e3);
  type("tendon_clients", "gauge", "Open connections");
  out += fmt::format("tendon_clients {}\n", sessions.size());
  if (const std::optional<ResidentMemory> memory = own_memory_by_kind()) {
    type("tendon_memory_bytes", "gauge", "In memory: its own, and of mapped files");
    row("tendon_memory_bytes", "kind", "private", memory->private_bytes);
    row("tendon_memory_bytes", "kind", "shared", memory->shared_bytes);
  }
  type("tendon_state_out_of_range_total", "counter", "State values outside q01 to q99");
  for (size_t i = 0; i < outside_.size(); ++i)
    row("tendon_state_out_of_range_total", "dimension", i, outside_[i]);
  type("tendon_network_total", "counter", "What happened on the policy port");
  const std::pair<const char*, const std::atomic<int64_t>*> events[] = {
      {"accepted", &network.accepted},
      {"over_capacity", &network.over_capacity},
      {"unauthorized", &network.unauthorized},
      {"bad_origin", &network.bad_origin},
      {"bad_handshake", &network.bad_handshake},
      {"head_timeout", &network.head_timeouts},
      {"message_timeout", &network.message_timeouts},
      {"silent", &network.silent},
      {"too_big", &network.too_big},
      {"protocol_error", &network.protocol_errors},
      {"ping", &network.pings},
      {"bytes_in", &network.bytes_in},
      {"bytes_out", &network.bytes_out}};
  for (const auto& [event, value] : events)
    row("tendon_network_total", "event", event, value->load());
  return out;
}

}  // namespace tendon
