// A server in this process with a policy of three lines, and the requests it takes.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <future>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "client/websocket_client.h"
#include "msgpack_messages.h"
#include "network_peers.h"
#include "serve/server.h"
#include "tendon/error.h"

namespace tendon {

struct StubPolicy {
  std::atomic<double> seconds = 0;                            // that infer takes
  std::atomic<bool> hold = false;                             // infer lasts until it is false
  std::atomic<bool> not_finite = false, device_lost = false;  // as if weights were broken
  std::atomic<double> action = 0.25;                          // every value
  std::atomic<int> running = 0;                               // inferences now
  std::mutex mutex;
  InferOptions last;  // guarded
};

inline ModelCard stub_card() {
  ModelCard card{{.model = "stub", .robot = "libero"}, "cpu"};
  card.cameras = {"image", "wrist_image"};
  card.action_names = {"x", "y", "z", "roll", "pitch", "yaw", "gripper"};
  card.horizon = 10;
  card.action_dim = 7;
  card.state_dim = 8;
  card.model_action_dim = 32;
  card.action_ranges = true;
  card.warm_up_ms = 1;
  return card;
}

// Actions depend on state, seed and pixels.
inline Actions stub_actions(StubPolicy& stub, const Observation& seen, const InferOptions& infer) {
  ++stub.running;
  if (stub.seconds > 0)
    std::this_thread::sleep_for(std::chrono::duration<double>(stub.seconds.load()));
  while (stub.hold) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  --stub.running;
  {
    const std::lock_guard lock(stub.mutex);
    stub.last = infer;
  }
  if (stub.device_lost) throw Error(Fault::backend, "the device does not answer");
  if (stub.not_finite)
    throw Error(Fault::internal, "action 3 of row 2 is nan; refusing to return it");
  Actions actions{.horizon = 10, .dim = 7, .values = std::vector<double>(70, stub.action.load())};
  actions.values[0] = static_cast<double>(infer.seed);
  actions.values[1] = seen.state.at(0);
  actions.values[2] = seen.images.at("image").rgb[5];
  actions.low.assign(7, -1000);
  actions.high.assign(7, 1000);
  actions.low[3] = -0.5;
  actions.high[3] = 0.5;
  actions.state_outside.assign(8, 0);
  actions.times = {.vision_ms = 1, .prefill_ms = 2, .denoise_ms = 4};
  return actions;
}

inline std::vector<Actions> stub_batch(StubPolicy& stub, std::span<const BatchRow> rows) {
  std::vector<Actions> all;
  for (const BatchRow& row : rows) all.push_back(stub_actions(stub, *row.observation, row.options));
  return all;
}

inline std::string stub_request(int64_t side = 4, double state = 0.5,
                                const msgpack::Fields& more = {}) {
  const auto picture =
      msgpack::array("|u1", {side, side, 3}, static_cast<size_t>(3 * side * side), 9);
  msgpack::Fields fields = {{"observation/image", picture},
                            {"observation/wrist_image", picture},
                            {"observation/state", msgpack::doubles(std::vector<double>(8, state))},
                            {"prompt", msgpack::text("pick up the bowl")}};
  fields.insert(fields.end(), more.begin(), more.end());
  return msgpack::message(fields);
}

class StubServer {
 public:
  using Hook = std::function<void()>;

  // The hooks run once on the thread of the network and on that of the inference.
  explicit StubServer(ServeOptions options = {}, Hook on_network = {}, Hook on_inference = {}) {
    options.policy.at = {};
    options.admin = {};
    std::promise<void> ready;
    options.ready = [&, on_network](uint16_t port, uint16_t admin) {
      port_ = port;
      admin_port_ = admin;
      if (on_network) on_network();
      ready.set_value();
    };
    thread_ = std::thread([this, options, on_inference, &ready] {
      try {
        code_ = serve(
            [this, on_inference](const auto&) {
              if (on_inference) on_inference();
              return ServedPolicy{stub_card(), [this](std::span<const BatchRow> rows) {
                                    return stub_batch(policy, rows);
                                  }};
            },
            options);
      } catch (const std::bad_alloc&) {
        code_ = kOutOfMemory;
      } catch (const Error&) {
        code_ = kRefused;
      }
      if (port_ == 0) ready.set_value();
    });
    ready.get_future().wait();
  }
  ~StubServer() { stop(); }

  int stop() {
    if (thread_.joinable()) {
      if (code_ == kServing) ::kill(::getpid(), SIGTERM);
      thread_.join();
    }
    return code_;
  }

  // Past the greeting.
  WebSocketClient client(const std::string& target = "/", double timeout_s = 10) const {
    WebSocketClient client(url(target), {.timeout_s = timeout_s});
    client.receive();
    return client;
  }
  std::string url(const std::string& target = "/") const {
    return "ws://127.0.0.1:" + std::to_string(port_) + target;
  }
  uint16_t port() const { return port_; }
  uint16_t admin_port() const { return admin_port_; }
  int code() const { return code_; }  // the exit code, or one of these:

  static constexpr int kRefused = -1, kServing = -2, kOutOfMemory = -3;
  StubPolicy policy;

 private:
  std::atomic<uint16_t> port_ = 0, admin_port_ = 0;
  std::atomic<int> code_ = kServing;
  std::thread thread_;
};

inline WebSocketClient::Message ask(WebSocketClient& client, std::string_view request) {
  client.send(bytes_of(request));
  return client.receive();
}
inline std::string text_of(const WebSocketClient::Message& message) {
  EXPECT_TRUE(message.text);
  return {message.bytes.begin(), message.bytes.end()};
}
inline std::vector<double> actions(const WebSocketClient::Message& reply) {
  EXPECT_FALSE(reply.text);
  return msgpack::decode(reply.bytes).find("actions")->array.numbers();
}

// Status line, head and body of a GET.
inline std::string http_get(uint16_t port, const std::string& target) {
  RawSocket socket(port);
  socket.send(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", target));
  return socket.until_end();
}
inline int http_status(uint16_t port, const std::string& target) {
  const std::string reply = http_get(port, target);
  return reply.size() > 12 ? std::stoi(reply.substr(9, 3)) : 0;
}

}  // namespace tendon
