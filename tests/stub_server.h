// A server in this process with a policy of three lines, and the requests it takes.
#pragma once

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "client/msgpack.h"
#include "client/websocket_client.h"
#include "serve/network.h"
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

inline std::string stub_request(int side = 4, double state = 0.5,
                                const std::function<void(msgpack::Writer&)>& more = {},
                                int more_keys = 0) {
  std::string out;
  msgpack::Writer to(out);
  to.map(4 + more_keys);
  const std::vector<uint8_t> pixels(static_cast<size_t>(3 * side * side), 9);
  for (const char* key : {"observation/image", "observation/wrist_image"}) {
    to.text(key);
    to.array("|u1", std::vector<int64_t>{side, side, 3}, pixels);
  }
  to.text("observation/state");
  to.array(std::vector<double>(8, state), std::vector<int64_t>{8});
  to.text("prompt");
  to.text("pick up the bowl");
  if (more) more(to);
  return out;
}

class StubServer {
 public:
  explicit StubServer(ServeOptions options = {}) {
    options.policy.at = {};
    options.admin = {};
    std::promise<void> ready;
    options.ready = [&](uint16_t port, uint16_t admin) {
      port_ = port;
      admin_port_ = admin;
      ready.set_value();
    };
    thread_ = std::thread([this, options, &ready] {
      try {
        code_ = serve(
            [this](const auto&) {
              return ServedPolicy{stub_card(),
                                  [this](const Observation& seen, const InferOptions& infer) {
                                    return stub_actions(policy, seen, infer);
                                  }};
            },
            options);
      } catch (const Error&) {
        code_ = -1;
      }
      if (port_ == 0) ready.set_value();
    });
    ready.get_future().wait();
  }
  ~StubServer() { stop(); }

  int stop() {
    if (thread_.joinable()) {
      ::kill(::getpid(), SIGTERM);
      thread_.join();
    }
    return code_;
  }

  // Past the greeting.
  WebSocketClient client(const std::string& target = "/") const {
    WebSocketClient client(url(target), {});
    client.receive();
    return client;
  }
  std::string url(const std::string& target = "/") const {
    return "ws://127.0.0.1:" + std::to_string(port_) + target;
  }
  uint16_t port() const { return port_; }
  uint16_t admin_port() const { return admin_port_; }

  StubPolicy policy;

 private:
  std::atomic<uint16_t> port_ = 0, admin_port_ = 0;
  std::thread thread_;
  std::atomic<int> code_ = -2;
};

inline WebSocketClient::Message ask(WebSocketClient& client, std::string_view request) {
  client.send(bytes_of(request));
  return client.receive();
}
inline std::string text_of(const WebSocketClient::Message& message) {
  EXPECT_TRUE(message.text);
  return {message.bytes.begin(), message.bytes.end()};
}

// Status line, head and body of a GET.
inline std::string http_get(uint16_t port, const std::string& target) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{.sin_family = AF_INET, .sin_port = htons(port)};
  ::inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  std::string reply;
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string head =
        fmt::format("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", target);
    EXPECT_EQ(::write(fd, head.data(), head.size()), std::ssize(head));
    char buffer[4096];
    ssize_t got = 0;
    while ((got = ::read(fd, buffer, sizeof(buffer))) > 0)
      reply.append(buffer, static_cast<size_t>(got));
  }
  ::close(fd);
  return reply;
}

inline int http_status(uint16_t port, const std::string& target) {
  const std::string reply = http_get(port, target);
  return reply.size() > 12 ? std::stoi(reply.substr(9, 3)) : 0;
}

}  // namespace tendon
