// A WebSocket to a server, for tools and robots. Boost.Beast stays inside websocket_client.cc.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "client/bytes.h"
#include "tendon/client.h"

namespace tendon {

// "localhost" and the names below it are loopback addresses; no resolver is asked for them, so that
// they work where there is no hosts file (RFC 6761, 6.3).
bool is_localhost(std::string_view host);

// A blocking client for tools and robots; not thread-safe. Throws Error(Fault::network). It answers
// pings only within receive(), so one that is silent for silence_max_s is cut.
class WebSocketClient {
 public:
  using Options = PolicyClient::Options;  // keep_trying is the caller's
  struct Message {
    Bytes bytes;
    bool text = false;
  };
  // "ws://host:port/path", "host:port" or "host" (port 8000).
  WebSocketClient(const std::string& url, const Options& options);
  ~WebSocketClient();
  WebSocketClient(WebSocketClient&&) noexcept;
  WebSocketClient& operator=(WebSocketClient&&) noexcept;
  void send(std::span<const uint8_t> message);  // binary
  // Error says "closed with 1011: reason" or "no answer within 10 s".
  Message receive();
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tendon
