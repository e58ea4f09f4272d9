// One connection of the server over a pair of sockets, without ports, threads or clocks.
#pragma once

#include <sys/socket.h>

#include "serve/network_parts.h"
#include "target.h"

namespace tendon::fuzz {

// Sends every message back; what is no message ends the connection.
class Echo final : public WebSocketEvents {
 public:
  explicit Echo(wire::Hub& hub, const WebSocketOptions& options) : hub_(hub), options_(options) {}
  void opened(ConnectionId, const Peer&) override { ++open; }
  bool received(ConnectionId id, Bytes message, bool text) override {
    require(message.size() <= options_.message_bytes_max);
    hub_.websockets.at(id)->send(std::string(message.begin(), message.end()), text);
    return true;
  }
  void sent(ConnectionId) override {}
  void closed(ConnectionId) override { --open; }
  int open = 0;

 private:
  wire::Hub& hub_;
  const WebSocketOptions& options_;
};

class Connection {
 public:
  Connection() : echo_(hub_, port_.options) {
    port_.options.message_bytes_max = 16 << 10;
    port_.options.fragments_max = 16;
    port_.options.head_bytes_max = 4 << 10;
    port_.options.text_messages = true;
    port_.options.api_key = "key";
    port_.options.origins = {"http://robot"};
    port_.events = &echo_;
    port_.http = [](const HttpRequest& request) {
      return HttpReply{.status = request.target == "/healthz" ? 200 : 404, .body = "answer\n"};
    };
  }

  // All that the server says to `first`, then to `rest`, until both ends are closed.
  std::string talk(std::string_view first, std::string_view rest) {
    int ends[2];
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    const int peer = ends[1];
    const auto head = std::make_shared<wire::HttpConnection>(hub_, port_, hub_.next_id++);
    head->stream().socket().assign(wire::tcp::v4(), ends[0]);
    hub_.accepted(port_, head);
    std::string heard = send(peer, first, first.size());
    // In one to eight pieces, by the length, so that a find stays one.
    heard += send(peer, rest, 1 + rest.size() / (1 + rest.size() % 8));
    ::shutdown(peer, SHUT_WR);
    for (int i = 0; i < kTurnsMax && !over(); ++i) heard += turn(peer);
    require(over() && echo_.open == 0 && port_.open == 0);
    ::close(peer);
    return heard;
  }

 private:
  static constexpr int kTurnsMax = 1000;

  bool over() const {
    return port_.http_connections.empty() && hub_.websockets.empty() && hub_.lingering.empty();
  }

  std::string turn(int peer) {
    hub_.loop.restart();
    hub_.loop.poll();
    char heard[4096];
    std::string all;
    for (ssize_t n = 0; (n = recv(peer, heard, sizeof(heard), 0)) > 0;)
      all.append(heard, static_cast<size_t>(n));
    return all;
  }

  std::string send(int peer, std::string_view bytes, size_t piece) {
    std::string heard = turn(peer);
    while (!bytes.empty() && !over()) {
      const ssize_t n = ::send(peer, bytes.data(), std::min(piece, bytes.size()), MSG_NOSIGNAL);
      if (n < 0) break;
      bytes.remove_prefix(static_cast<size_t>(n));
      heard += turn(peer);
    }
    return heard;
  }

  wire::Hub hub_;
  wire::Port port_;
  Echo echo_;
};

}  // namespace tendon::fuzz
