// What the server counted and measured: Prometheus text, and JSON for the page.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
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

// Milliseconds of one answered request.
struct RequestTimes {
  double queue_ms = 0, decode_ms = 0, encode_ms = 0, total_ms = 0;
  StageTimes stages;
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
  int64_t counted(Outcome outcome) const;
  void answered(const RequestTimes& times, const Actions& actions, ConnectionId client);
  void warn(const std::string& text);  // the same text is shown once with its count

  // `sessions` and `network` belong to the caller's thread.
  std::string status_json(const std::vector<std::shared_ptr<Session>>& sessions) const;
  std::string prometheus(const std::vector<std::shared_ptr<Session>>& sessions,
                         const NetworkCounters& network) const;

 private:
  static constexpr int kStages = 8;
  // Times of one bucket of the page's history.
  struct Slice {
    int64_t begin = 0;  // in slices since the start
    std::vector<float> total_ms;
    std::array<double, kStages> stage_ms{};
  };
  struct Warning {
    int64_t count = 0;
    Clock::time_point last;
  };
  struct Chunk {
    Clock::time_point at;
    ConnectionId client = 0;
    int64_t horizon = 0, dim = 0;
    std::vector<double> values, low, high;
  };
  static std::array<double, kStages> stage_row(const RequestTimes& times);
  nlohmann::json latency_json() const;
  nlohmann::json history_json() const;
  nlohmann::json model_json() const;
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
  std::array<double, kStages> stage_sum_ms_{};
  std::optional<Chunk> chunk_;
  std::vector<int64_t> outside_;
  int64_t states_seen_ = 0;
  std::map<std::string, Warning> warnings_;
};

}  // namespace tendon
