// What the server counted and measured: Prometheus text, and JSON for the page.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "serve/model_card.h"
#include "serve/network.h"
#include "serve/session.h"

namespace tendon {

enum class ServerState { loading, warming, ready, draining, failed };
std::string_view name(ServerState state);

enum class Outcome { answered, refused, failed, deadline_missed, stale, skipped, guarded };
constexpr size_t kOutcomes = 7;
std::string_view name(Outcome outcome);

// What an answered request spends its time on, in this order.
constexpr std::array<std::string_view, 8> kStageNames = {
    "queue", "decode", "preprocess", "vision", "prefill", "denoise", "postprocess", "encode"};
using StageMs = std::array<double, kStageNames.size()>;

// The last actions that were sent, for the page.
struct SentChunk {
  ConnectionId client = 0;
  ActionChunk actions;
  std::vector<double> low, high;  // as Actions has them
  Clock::time_point at = Clock::now();
};

// Every function may be called from any thread.
class Metrics {
 public:
  void set_state(ServerState state, const std::string& reason);
  ServerState state() const;
  std::string reason() const;
  void set_progress(const LoadProgress& progress);
  void set_card(const ModelCard& card);

  void count(Outcome outcome);
  void answered(const StageMs& stage_ms, double total_ms, const std::vector<uint8_t>& state_outside,
                SentChunk chunk);
  void warn(const std::string& text);  // the same text is shown once with its count

  // `sessions` and `network` belong to the caller's thread.
  std::string status_json(const Sessions& sessions) const;
  std::string prometheus(const Sessions& sessions, const NetworkCounters& network) const;

 private:
  // Times of one bucket of the page's history.
  struct Slice {
    int64_t begin = 0;  // in slices since the start
    std::vector<float> total_ms;
    StageMs stage_ms{};
  };
  struct Warning {
    int64_t count = 0;
    Clock::time_point last;
  };
  nlohmann::json latency_json() const;
  nlohmann::json history_json() const;
  nlohmann::json loading_json() const;
  nlohmann::json warnings_json() const;

  mutable std::mutex mutex_;
  const Clock::time_point start_ = Clock::now();
  ServerState state_ = ServerState::loading;
  std::string reason_ = "loading weights";
  std::optional<LoadProgress> progress_;
  std::optional<ModelCard> card_;
  std::array<int64_t, kOutcomes> outcomes_{};
  std::deque<Slice> slices_;
  std::vector<int64_t> histogram_;  // of Prometheus, by upper bound
  double total_ms_ = 0;
  StageMs stage_sum_ms_{};
  std::optional<SentChunk> chunk_;
  std::vector<int64_t> outside_;
  int64_t states_seen_ = 0;
  std::map<std::string, Warning> warnings_;
};

}  // namespace tendon
