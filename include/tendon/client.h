// A robot's side of `tendon serve` and of every other server that speaks openpi's protocol. Needs
// no model, no backend and no Python.
//
//   tendon::PolicyClient policy("robot-brain:8000");
//   tendon::RemoteObservation now;
//   now.image("observation/image", 224, 224, front);
//   now.image("observation/wrist_image", 224, 224, hand);
//   now.state("observation/state", joints).prompt("pick up the fork");
//   tendon::RemoteActions chunk = policy.infer(now);
//
// What a robot must do: set a timeout, and hold (or stop in a controlled way) on every Error and
// while an ActionQueue is empty. Never repeat an old action blindly.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tendon/error.h"
#include "tendon/types.h"

namespace tendon {

// What the policy sees, under the keys of the wire, in the order in which they are added. A key
// that is given again is replaced.
class RemoteObservation {
 public:
  // A picture under a key of its own, as LIBERO ("observation/image"), DROID and lerobot
  // ("observation.images.top") have it: uint8 [height, width, 3], planar ones [3, height, width].
  RemoteObservation& image(std::string key, Image picture) {
    return set(std::move(key), std::move(picture));
  }
  // The same from bytes that must live until the observation was sent; they are not copied.
  RemoteObservation& image(std::string key, int height, int width, std::span<const uint8_t> rgb,
                           bool planar = false);
  // A picture in the map "images" that ALOHA sends: always [3, height, width] on the wire.
  RemoteObservation& camera(std::string name, Image picture);
  RemoteObservation& camera(std::string name, int height, int width, std::span<const uint8_t> rgb,
                            bool planar = false);
  // Float64 [n] in the robot's own units.
  RemoteObservation& state(std::string key, std::vector<double> values) {
    return set(std::move(key), std::move(values));
  }
  // UTF-8.
  RemoteObservation& text(std::string key, std::string value) {
    return set(std::move(key), std::move(value));
  }
  // Of the server's own keys.
  RemoteObservation& number(std::string key, double value) { return set(std::move(key), value); }
  RemoteObservation& prompt(std::string what_to_do) {
    return text("prompt", std::move(what_to_do));
  }

  using Cameras = std::vector<std::pair<std::string, Image>>;
  using Value = std::variant<Image, Cameras, std::vector<double>, std::string, double>;
  const std::vector<std::pair<std::string, Value>>& entries() const { return entries_; }

 private:
  Value& at(std::string key);
  RemoteObservation& set(std::string key, Value value) {
    at(std::move(key)) = std::move(value);
    return *this;
  }
  std::vector<std::pair<std::string, Value>> entries_;
};

// `observation` under the keys that openpi's policies for "aloha", "droid" or "libero", or
// lerobot's ("lerobot") expect. Pictures are viewed, not copied: `observation` must outlive the
// result. Throws Error(Fault::usage) for another robot, Fault::input for a DROID state that is not
// 7 joints and a gripper.
RemoteObservation laid_out(const Observation& observation, const std::string& robot);

// Actions one after the other: values[row * dim + d], in the robot's units.
struct ActionChunk {
  int64_t rows = 0, dim = 0;
  std::vector<double> values;

  // Its last rows, beginning with `row`; none where it has no such row.
  ActionChunk from(int64_t row) const {
    if (row < 0 || row >= rows) return {.rows = 0, .dim = dim, .values = {}};
    return {.rows = rows - row, .dim = dim, .values = {values.begin() + row * dim, values.end()}};
  }
};

using RequestId = std::variant<std::string, int64_t>;  // a text has at most 256 bytes

// Keys of tendon's server; openpi's own ignores them.
struct RemoteOptions {
  std::optional<uint64_t> seed;         // of the noise, below 2^53
  ActionChunk noise;                    // itself: [horizon, the model's own action dim]
  std::optional<RequestId> request_id;  // comes back
  std::optional<double> deadline_ms;    // an answer later than this is not wanted
  std::optional<double> observed_at;    // when the observation was taken, Unix seconds
  // Real-time chunking: the rows of the previous chunk that were not executed when the observation
  // was taken, and how many of them will be executed before the reply arrives.
  ActionChunk prev_chunk;
  std::optional<int64_t> inference_delay;
  std::optional<int64_t> execution_horizon;  // rows that are guided at all
  // Instead of prev_chunk, for servers with --rtc: actions of this connection's previous reply that
  // were executed when the observation was taken.
  std::optional<int64_t> actions_consumed;
};

// The bytes of one request. Throws Error(Fault::input) for pictures whose bytes do not fit their
// size and for numbers that are not finite.
std::string request_message(const RemoteObservation& observation,
                            const RemoteOptions& options = {});

// All of its values are finite.
struct RemoteActions : ActionChunk {
  // In milliseconds, but for counters such as reply_id: infer_ms, prev_total_ms; tendon also sends
  // queue_ms, the stages and, when asked, observation_age_ms.
  std::map<std::string, double> server_timing, policy_timing;
  double round_trip_ms = 0;  // from infer()'s begin to its end
  std::string request_id;    // of RemoteOptions, when it is a text and the server returned it
};

// What the server said about its policy in its first message. openpi's own says little or nothing:
// what is absent stays empty.
struct RemotePolicy {
  std::string model, robot, server;  // "aloha", "droid", "libero" or "lerobot"; "tendon 0.1.0"
  // Of the answer to the warm-up's observation: weights, statistics, backend and precision in one.
  std::string fingerprint;
  int64_t horizon = 0;  // rows of a chunk
  std::vector<std::string> action_names, cameras;
  std::vector<double> reset_pose;  // joints of one arm where an episode begins
  bool demo = false;               // no policy for a real robot: built in or random weights
};

// One connection, one request at a time; not thread-safe. Pings are answered during infer() only: a
// server drops a robot that asks nothing for longer than its patience (openpi's: 40 s, tendon's:
// 120 s).
class PolicyClient {
 public:
  struct Options {
    std::string api_key;
    double timeout_s = 10;     // to connect, and of every reply
    bool keep_trying = false;  // while nobody listens there yet, however long that takes
    // Called every tenth of a second of waiting for the server. What it throws comes out of the
    // call; the connection is then gone.
    std::function<void()> poll = {};
  };

  // `url`: "ws://host:port", "host:port" or "host" (port 8000). Throws Error(Fault::network) when
  // nobody answers, the key is refused, or what answers is no policy server.
  explicit PolicyClient(const std::string& url, const Options& options);
  explicit PolicyClient(const std::string& url);

  const RemotePolicy& policy() const;

  // Fault::input: the server refused the request and says why, the connection stays usable.
  // Fault::internal: it sent actions that are not finite, the connection stays usable.
  // Fault::network: closed, no reply in time, or a reply that is none. The connection is then gone,
  // so that a late reply is never taken for the next one's: make a new PolicyClient.
  RemoteActions infer(const RemoteObservation& observation, const RemoteOptions& options = {});

  // The same for a request that is already a message, as request_message() makes them.
  RemoteActions ask(std::string_view request);

  // Of tendon's server, for {"batch": [request, ...]} and requests with "num_samples": a chunk per
  // row, each as a request of its own gets it. Fault::input also names the row.
  struct Replies {
    std::vector<RemoteActions> rows;
    bool list = false;  // what came was a list, else one reply
  };
  Replies ask_rows(std::string_view request);

  // laid_out() for `robot`; "": as the server says.
  RemoteActions infer(const Observation& observation, const std::string& robot = "",
                      const RemoteOptions& options = {});

  ~PolicyClient();
  PolicyClient(PolicyClient&&) noexcept;
  PolicyClient& operator=(PolicyClient&&) noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The rows of the newest chunk that wait for execution. One thread pops at the robot's rate while
// another asks for the next chunk:
//
//   network thread                               control thread, control_hz times a second
//   const auto mark = queue.mark();              if (const auto action = queue.pop())
//   queue.push(policy.infer(observe()), mark);     robot.move(*action);
//                                                else
//                                                  robot.hold();
class ActionQueue {
 public:
  // Where the robot is in its stream of actions. Taken when an observation is taken.
  struct Mark {
    int64_t consumed = 0, clears = 0;
  };

  // `rows_max`: of a chunk are executed, then the queue is empty (openpi's action_horizon of its
  // ActionChunkBroker); 0: all.
  explicit ActionQueue(int64_t rows_max = 0) : rows_max_(rows_max) {}

  Mark mark() const;
  int64_t consumed_since(const Mark& mark) const;  // actions that pop() gave since

  // Replaces what waits by the chunk for the observation at `mark`, without its first
  // consumed_since(mark) rows: their time has passed. Returns how many rows wait now. A chunk from
  // before the last clear(), or for an older observation than the one that is being executed, is
  // ignored. Throws Error(Fault::usage) for values that are not rows * dim, or a mark ahead of
  // this queue.
  int64_t push(const RemoteActions& chunk, const Mark& mark);

  // The next action, [dim]. Nothing when there is none: hold.
  std::optional<std::vector<double>> pop();

  int64_t size() const;  // actions that wait
  void clear();          // a new episode begins; requests under way are void

  // Rows that pop() has not given, now or at `mark`, also those beyond rows_max.
  ActionChunk left_over() const;
  ActionChunk left_over(const Mark& mark) const;

  // Actions that a robot at `control_hz` executes while the slowest request so far is under way:
  // ceil(slowest * control_hz). The first request pays for connecting and warming up: no sample.
  int64_t delay_steps(double control_hz) const;

  // What real-time chunking sends along with the observation at `mark`: left_over(mark) and
  // delay_steps(control_hz), at most as many as rows are left. Nothing without a chunk.
  RemoteOptions guidance(double control_hz, const Mark& mark) const;

 private:
  int64_t row_at(const Mark& mark) const;
  int64_t next() const;
  int64_t end() const;
  int64_t steps(double control_hz) const;

  const int64_t rows_max_;
  mutable std::mutex mutex_;  // of all below
  RemoteActions chunk_;
  int64_t consumed_ = 0;  // in all
  int64_t clears_ = 0;
  Mark chunk_mark_;
  int64_t pushes_ = 0;
  double slowest_ms_ = 0;
};

}  // namespace tendon
