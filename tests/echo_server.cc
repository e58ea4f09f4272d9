// A server for conformance suites: sends every message back. Prints "listening on PORT".
#include <fmt/format.h>

#include <csignal>
#include <cstdio>

#include "serve/network.h"

namespace {

using namespace tendon;

class Echo : public WebSocketEvents {
 public:
  explicit Echo(Network& network) : network_(network) {}
  void opened(ConnectionId, const Peer&) override {}
  bool received(ConnectionId id, Bytes message, bool text) override {
    network_.send(id, std::string(message.begin(), message.end()), text);
    return true;
  }
  void sent(ConnectionId) override {}
  void closed(ConnectionId) override {}

 private:
  Network& network_;
};

}  // namespace

int main() {
  Network network;
  Echo echo(network);
  WebSocketOptions options;
  options.message_bytes_max = 16 << 20;
  options.fragments_max = 65'536;
  options.text_messages = true;
  const uint16_t port = network.listen_websocket(
      options, echo, [](const HttpRequest&) { return HttpReply{.status = 404, .body = ""}; });
  network.on_signals({SIGINT, SIGTERM}, [&](int) { network.stop(); });
  fmt::print("listening on {}\n", port);
  std::fflush(stdout);
  network.run();
}
