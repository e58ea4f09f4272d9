// WebSocket and HTTP on one thread. Boost.Beast stays inside network.cc.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/bytes.h"

namespace tendon {

namespace wire {
struct Hub;
}

using ConnectionId = uint64_t;

// RFC 6455, 7.4.1: those that this server sends by itself.
enum class CloseCode : uint16_t {
  normal = 1000,
  going_away = 1001,
  unsupported = 1003,
  policy_violation = 1008,
  too_big = 1009,
  internal_error = 1011,
};

struct HttpRequest {
  std::string method, target;
};
struct HttpReply {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};
using HttpHandler = std::function<HttpReply(const HttpRequest&)>;  // on the I/O thread

struct PortOptions {
  std::string host = "127.0.0.1";  // a name, an IPv4 or IPv6 address; "" or "*": all
  uint16_t port = 0;               // 0: any free one
  const char* flag = "--port";     // that errors name
};

struct WebSocketOptions {
  PortOptions at;
  size_t head_bytes_max = 16 << 10;
  size_t message_bytes_max = 64 << 20;  // beyond: close 1009, nothing reserved
  int64_t fragments_max = 4096;         // of one message; beyond: close 1009
  int connections_max = 64;             // open websockets; beyond: HTTP 503
  int handshakes_max = 512;             // connections that are not websockets yet
  double head_timeout_s = 10;           // from accept to the end of the request head
  double message_timeout_s = 30;        // from the first byte of a message to its last
  double ping_after_s = 20;             // of silence
  double silence_max_s = 120;           // then the connection is cut; also for a blocked write
  std::string api_key;                  // "": none wanted; else 401 before the upgrade
  std::vector<std::string> origins;     // Origin headers that are allowed; robots send none
  bool text_messages = false;           // false: a text message closes with 1003
};

struct Peer {
  std::string address;  // without port
  std::string target;   // of the request: "/?queue=latest"
};

// Called on the I/O thread.
class WebSocketEvents {
 public:
  virtual ~WebSocketEvents() = default;
  virtual void opened(ConnectionId id, const Peer& peer) = 0;
  // Returns whether to go on reading; false: not before resume(). Pings are only seen while
  // reading.
  virtual bool received(ConnectionId id, Bytes message, bool text) = 0;
  virtual void sent(ConnectionId id) = 0;    // one send() is with the operating system
  virtual void closed(ConnectionId id) = 0;  // for whatever reason; the last call for `id`
};

// Counted since the start; read from any thread.
struct NetworkCounters {
  std::atomic<int64_t> accepted = 0, over_capacity = 0, unauthorized = 0, bad_origin = 0,
                       bad_handshake = 0, head_timeouts = 0, message_timeouts = 0, silent = 0,
                       too_big = 0, protocol_errors = 0, pings = 0, bytes_in = 0, bytes_out = 0;
};

// Throws what listening at `at` would throw now, without anybody being able to connect meanwhile.
void check_port(const PortOptions& at);

// Everything but post(), stop() and counters() belongs to the thread that calls run(), or happens
// before it.
class Network {
 public:
  Network();
  ~Network();
  // Returns the port that was bound. Throws Error(Fault::network) with the fix: port in use, no
  // permission, an address that is not of this machine, an unknown name. `http` answers what is no
  // upgrade, and everything where `events` is null; beside websockets its 404 becomes 426.
  uint16_t listen(const WebSocketOptions& options, WebSocketEvents* events, HttpHandler http);
  void stop_listening();  // on websocket ports; what is open stays open

  void send(ConnectionId id, std::string message, bool text = false);  // in order; unknown: nothing
  void resume(ConnectionId id);
  void close(ConnectionId id, CloseCode code, std::string_view reason);  // after what was sent

  void post(std::function<void()> action);                   // from any thread, to the I/O thread
  void after(double seconds, std::function<void()> action);  // once
  void on_signals(std::vector<int> signals, std::function<void(int)> action);  // each time
  void run();                                                                  // until stop()
  void stop();                                                                 // from any thread
  const NetworkCounters& counters() const;

 private:
  std::unique_ptr<wire::Hub> hub_;
};

}  // namespace tendon
