// The blocking client. Beast's blocking calls know no time limit, so each call runs an asynchronous
// operation on a loop of its own.
#include "client/websocket_client.h"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/websocket/stream.hpp>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "tensor/check.h"

namespace tendon {

bool is_localhost(std::string_view host) {
  if (host.ends_with('.')) host.remove_suffix(1);
  constexpr std::string_view kName = "localhost";
  if (host.size() < kName.size()) return false;
  const std::string_view below = host.substr(0, host.size() - kName.size());
  if (!boost::beast::iequals(host.substr(below.size()), kName)) return false;
  return below.empty() || (below.size() > 1 && below.ends_with('.'));
}

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = boost::beast::websocket;
using asio::ip::tcp;
using Loop = boost::asio::io_context;
using ErrorCode = beast::error_code;
using Clock = std::chrono::steady_clock;
using Stream = beast::basic_stream<tcp, Loop::executor_type>;

constexpr double kCloseSeconds = 2;
constexpr std::chrono::milliseconds kPollEvery{100};
constexpr size_t kMessageBytesMax = 64 << 20;

struct Url {
  std::string host, port = "8000", target = "/";
  std::string host_and_port() const {
    return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + port;
  }
};

Url parse_url(std::string_view text) {
  const std::string whole(text);
  Url url;
  if (text.starts_with("ws://")) text.remove_prefix(5);
  ensure(text.find("://") == text.npos, Fault::network,
         "'{}': only ws:// is spoken; for wss:// put a proxy in between", whole);
  const size_t slash = std::min(text.find_first_of("/?"), text.size());
  if (slash < text.size()) url.target = text.substr(slash);
  if (url.target.starts_with('?')) url.target.insert(0, "/");
  text = text.substr(0, slash);
  const size_t bracket = text.starts_with('[') ? text.find(']') : 0;
  ensure(bracket != text.npos, Fault::network, "'{}': the ']' of the address is missing", whole);
  const size_t colon = text.find(':', bracket);
  if (colon != text.npos) {
    url.port = text.substr(colon + 1);
    text = text.substr(0, colon);
  }
  url.host = bracket > 0 ? text.substr(1, bracket - 1) : text;
  const bool digits = url.port.find_first_not_of("0123456789") == url.port.npos;
  ensure(!url.host.empty() && digits && !url.port.empty() && url.port.size() <= 5, Fault::network,
         "'{}' is no address; wanted ws://HOST:PORT/PATH, HOST:PORT or HOST", whole);
  return url;
}

std::vector<tcp::endpoint> addresses(Loop& loop, const Url& url) {
  std::vector<tcp::endpoint> ends;
  ErrorCode ec;
  for (const std::string& host : is_localhost(url.host)
                                     ? std::vector<std::string>{"127.0.0.1", "::1"}
                                     : std::vector{url.host})
    for (const auto& entry : tcp::resolver(loop).resolve(host, url.port, ec))
      ends.push_back(entry.endpoint());
  ensure(!ends.empty(), Fault::network, "host '{}' is unknown to this machine", url.host);
  return ends;
}

}  // namespace

struct WebSocketClient::State {
  // Starts `operation`, which is given a callback, and waits for it; nothing: the time is over.
  template <class Operation>
  std::optional<ErrorCode> wait_for(double limit_s, Operation&& operation) {
    std::optional<ErrorCode> result;
    operation([&result](const ErrorCode& ec, auto&&...) { result = ec; });
    // The callback refers to this frame.
    const std::shared_ptr<void> cut(nullptr, [&](void*) {
      if (result) return;
      beast::get_lowest_layer(ws).close();
      loop.restart();
      loop.run();
    });
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(limit_s));
    loop.restart();
    while (!result && Clock::now() < end) {
      loop.run_until(std::min(end, Clock::now() + kPollEvery));
      if (!result && options.poll) options.poll();
    }
    return std::optional(result);  // not what `cut` makes of it
  }
  void connect(const Url& url);
  void check(const std::optional<ErrorCode>& ec);

  Options options;
  std::string peer;
  Loop loop;
  websocket::stream<Stream, false> ws{loop};
};

void WebSocketClient::State::connect(const Url& url) {
  peer = url.host_and_port();
  ErrorCode ec;
  const std::vector<tcp::endpoint> ends = addresses(loop, url);
  std::optional<ErrorCode> done = wait_for(options.timeout_s, [&](auto callback) {
    asio::async_connect(beast::get_lowest_layer(ws).socket(), ends, callback);
  });
  ensure(done.has_value(), Fault::network, "cannot connect to {}: no answer within {} s", peer,
         options.timeout_s);
  ensure(!*done, Fault::network, "cannot connect to {}: {}; is the server running?", peer,
         done->message());
  beast::get_lowest_layer(ws).socket().set_option(tcp::no_delay(true), ec);
  ws.auto_fragment(false);
  ws.read_message_max(kMessageBytesMax);
  ws.set_option(websocket::stream_base::decorator([this](websocket::request_type& request) {
    request.set(beast::http::field::user_agent, "tendon");
    if (!options.api_key.empty())
      request.set(beast::http::field::authorization, "Api-Key " + options.api_key);
  }));
  websocket::response_type response;
  done = wait_for(options.timeout_s,
                  [&](auto callback) { ws.async_handshake(response, peer, url.target, callback); });
  ensure(done.has_value(), Fault::network, "{}: no answer to the handshake within {} s", peer,
         options.timeout_s);
  ensure(*done != websocket::error::upgrade_declined, Fault::network, "{} answered {} {}: {}", peer,
         response.result_int(), std::string(response.reason()), response.body());
  ensure(!*done, Fault::network, "{}: the handshake failed: {}", peer, done->message());
}

void WebSocketClient::State::check(const std::optional<ErrorCode>& ec) {
  ensure(ec.has_value(), Fault::network, "no answer within {} s", options.timeout_s);
  if (*ec == websocket::error::closed) {
    const auto& why = ws.reason();
    fail(Fault::network, "closed with {}: {}", why.code,
         std::string_view(why.reason.data(), why.reason.size()));
  }
  ensure(!*ec, Fault::network, "the connection to {} broke: {}", peer, ec->message());
}

WebSocketClient::WebSocketClient(const std::string& url, const Options& options)
    : state_(std::make_unique<State>()) {
  state_->options = options;
  state_->connect(parse_url(url));
}
WebSocketClient::~WebSocketClient() = default;
WebSocketClient::WebSocketClient(WebSocketClient&&) noexcept = default;
WebSocketClient& WebSocketClient::operator=(WebSocketClient&&) noexcept = default;

void WebSocketClient::send(std::span<const uint8_t> message) {
  State& s = *state_;
  s.ws.binary(true);
  s.check(s.wait_for(s.options.timeout_s, [&](auto callback) {
    s.ws.async_write(asio::buffer(message.data(), message.size()), callback);
  }));
}

WebSocketClient::Message WebSocketClient::receive() {
  State& s = *state_;
  beast::flat_buffer buffer;
  s.check(
      s.wait_for(s.options.timeout_s, [&](auto callback) { s.ws.async_read(buffer, callback); }));
  const auto* bytes = static_cast<const uint8_t*>(buffer.data().data());
  return {.bytes = Bytes(bytes, bytes + buffer.size()), .text = s.ws.got_text()};
}

void WebSocketClient::close() {
  State& s = *state_;
  if (!s.ws.is_open()) return;
  s.wait_for(kCloseSeconds,
             [&](auto callback) { s.ws.async_close(websocket::close_code::normal, callback); });
}

}  // namespace tendon
