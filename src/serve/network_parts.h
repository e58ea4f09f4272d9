// What network*.cc share: the hub, its ports, and a connection in its three states: HttpConnection
// until the head of its request is answered, WebSocketConnection, and LingeringClose.
#pragma once

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/websocket/stream.hpp>
#include <chrono>
#include <deque>
#include <limits>
#include <list>
#include <map>
#include <optional>
#include <utility>

#include "serve/network.h"
#include "tensor/check.h"

namespace tendon::wire {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
namespace websocket = boost::beast::websocket;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using Loop = boost::asio::io_context;
using Acceptor = asio::basic_socket_acceptor<tcp, Loop::executor_type>;
using ErrorCode = beast::error_code;

constexpr double kCloseSeconds = 2;  // for the peer's half of the closing

inline Clock::duration seconds(double s) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
}

// What one connection's wire did. Beast asks it around each transfer, also for parts of a frame.
class Traffic {
 public:
  explicit Traffic(NetworkCounters& counters) : counters_(&counters) {}
  // The bytes that came make a message or a control frame.
  void claim() {
    waiting_since.reset();
    unclaimed_bytes = 0;
  }

  Time last_in = Clock::now(), last_out = Clock::now();
  std::optional<Time> waiting_since;  // the first byte of a message that is not whole yet
  size_t unclaimed_bytes = 0;         // since payload or a control frame arrived

 private:
  friend class beast::rate_policy_access;
  static size_t available_read_bytes() { return std::numeric_limits<size_t>::max(); }
  static size_t available_write_bytes() { return std::numeric_limits<size_t>::max(); }
  static void on_timer() {}
  void transfer_read_bytes(size_t n) {
    last_in = Clock::now();
    if (!waiting_since) waiting_since = last_in;
    unclaimed_bytes += n;
    counters_->bytes_in += static_cast<int64_t>(n);
  }
  void transfer_write_bytes(size_t n) {
    last_out = Clock::now();
    counters_->bytes_out += static_cast<int64_t>(n);
  }

  NetworkCounters* counters_;
};

struct Stream : beast::basic_stream<tcp, Loop::executor_type, Traffic> {
  using basic_stream::basic_stream;
};

// Beast would wait for the peer's end here, without limit; LingeringClose does that with one.
template <class Done>
void async_teardown(beast::role_type, Stream& stream, Done&& done) {
  ErrorCode ignored;
  stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
  asio::post(stream.get_executor(),
             beast::bind_front_handler(std::forward<Done>(done), ErrorCode()));
}

class HttpConnection;
class WebSocketConnection;
class LingeringClose;

struct Port {
  WebSocketOptions options;
  WebSocketEvents* events = nullptr;  // null: HTTP only
  HttpHandler http;
  std::list<Acceptor> acceptors;
  std::map<ConnectionId, std::shared_ptr<HttpConnection>> http_connections;  // oldest first
  int open = 0;
  bool listening = true;
};

struct Hub {
  void accept(Port& port, Acceptor& acceptor);
  void accepted(Port& port, const std::shared_ptr<HttpConnection>& head);
  void linger(Stream stream);
  WebSocketConnection* find(ConnectionId id) const;  // null: not open any more
  void after(double wait_s, std::function<void()> action);
  void tick();
  void wait_for(asio::signal_set& set, const std::function<void(int)>& action);

  Loop loop;  // first: it outlives what its callbacks hold
  NetworkCounters counters;
  std::list<std::unique_ptr<Port>> ports;
  std::map<ConnectionId, std::shared_ptr<WebSocketConnection>> websockets;
  std::list<std::shared_ptr<LingeringClose>> lingering;
  std::list<asio::signal_set> signals;
  ConnectionId next_id = 1;
};

// Our last bytes are sent. Closing with unread bytes would reset the connection and destroy them on
// their way, so the peer's are read until it closes too.
class LingeringClose : public std::enable_shared_from_this<LingeringClose> {
 public:
  LingeringClose(Hub& hub, Stream stream) : hub_(hub), stream_(std::move(stream)) {}
  void read();
  void cut() { stream_.close(); }
  const Time deadline = Clock::now() + seconds(kCloseSeconds);

 private:
  Hub& hub_;
  Stream stream_;
  std::array<char, 4096> discarded_{};
};

class WebSocketConnection : public std::enable_shared_from_this<WebSocketConnection> {
 public:
  WebSocketConnection(Hub& hub, Port& port, ConnectionId id, Stream stream, Peer peer)
      : hub_(hub),
        port_(port),
        options_(port.options),
        id_(id),
        peer_(std::move(peer)),
        ws_(std::move(stream)),
        deadline_(Clock::now() + seconds(options_.head_timeout_s)) {}
  void accept(const http::request<http::empty_body>& request);
  void send(std::string message, bool text);
  void resume();
  void close(CloseCode code, std::string_view reason);
  void tick(Time now);
  void finish(bool politely);

 private:
  struct Outgoing {
    std::string message;
    bool text;
  };
  Traffic& traffic() { return ws_.next_layer().rate_policy(); }
  void saw(websocket::frame_type frame);
  void read();
  void read_some(const ErrorCode& ec, size_t n);
  void read_failed(const ErrorCode& ec);
  void message_done();
  void too_many_fragments();
  void write();
  void start_close();
  void keep_alive(Time now);
  void cut();

  Hub& hub_;
  Port& port_;
  const WebSocketOptions& options_;
  const ConnectionId id_;
  const Peer peer_;
  websocket::stream<Stream, false> ws_;  // false: no compression
  std::optional<Time> deadline_;         // of the handshake, later of the closing
  Bytes message_;
  size_t message_bytes_ = 0;  // those of message_ that have arrived
  int64_t fragments_ = 0;
  std::deque<Outgoing> queue_;  // its first is being written
  size_t queue_bytes_ = 0;
  std::optional<websocket::close_reason> closing_;
  Time last_ping_ = Clock::now();
  bool opened_ = false, paused_ = false, writing_ = false, pinging_ = false, finished_ = false;
};

// One HTTP exchange: a request head, then an answer or a websocket.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(Hub& hub, Port& port, ConnectionId id)
      : hub_(hub),
        port_(port),
        options_(port.options),
        id_(id),
        stream_(Traffic(hub.counters), hub.loop),
        buffer_(options_.head_bytes_max + 1) {}
  ConnectionId id() const { return id_; }
  Stream& stream() { return stream_; }
  void read();
  void drop();
  void expire();
  Time deadline() const { return deadline_; }

 private:
  using Request = http::request<http::empty_body>;
  void head_read(const ErrorCode& ec);
  void answer_http(const Request& request);
  void upgrade(const Request& request);
  HttpReply refusal(const Request& request);
  void refuse(int status, const std::string& why);
  void answer(const HttpReply& reply, bool with_body = true);

  Hub& hub_;
  Port& port_;
  const WebSocketOptions& options_;
  const ConnectionId id_;
  Stream stream_;
  beast::flat_buffer buffer_;
  http::request_parser<http::empty_body> parser_;
  Time deadline_;
  std::string answer_;
  bool dropped_ = false;
};

}  // namespace tendon::wire
