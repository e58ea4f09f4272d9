// One HTTP exchange up to its answer or its upgrade.
#include <algorithm>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/rfc7230.hpp>

#include "serve/network_parts.h"

namespace tendon::wire {
namespace {

// How long it takes depends on `given` alone.
bool same_secret(std::string_view given, std::string_view secret) {
  unsigned difference = given.size() == secret.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i)
    difference |= static_cast<unsigned>(given[i] ^ secret[i % secret.size()]);
  return difference == 0;
}

// Whether no page of the internet can be at this address: an IP address, or a name without a
// domain. A domain's owner may let its name point at any machine (DNS rebinding), so that a page of
// the domain has the server's own address.
bool is_local_name(std::string_view host) {
  const size_t colon = host.rfind(':');
  const bool bracketed = host.starts_with('[');
  if (!bracketed && colon != host.npos) host = host.substr(0, colon);
  const bool address = host.find_first_not_of("0123456789.") == host.npos;
  return bracketed || address || host.find('.') == host.npos;
}

bool is_allowed(std::string_view origin, std::string_view host,
                const std::vector<std::string>& allowed) {
  for (const std::string& one : allowed)
    if (one == "*" || one == origin) return true;
  if (!is_local_name(host)) return false;
  return origin == fmt::format("http://{}", host) || origin == fmt::format("https://{}", host);
}

}  // namespace

void LingeringClose::read() {
  stream_.async_read_some(asio::buffer(discarded_),
                          [self = shared_from_this()](const ErrorCode& ec, size_t) {
                            if (!ec) return self->read();
                            self->stream_.close();
                            self->hub_.lingering.remove(self);
                          });
}

void HttpConnection::read() {
  deadline_ = Clock::now() + seconds(options_.head_timeout_s);
  parser_.header_limit(static_cast<uint32_t>(options_.head_bytes_max));
  parser_.body_limit(0);
  http::async_read_header(
      stream_, buffer_, parser_,
      [self = shared_from_this()](const ErrorCode& ec, size_t) { self->head_read(ec); });
}

void HttpConnection::drop() {
  if (std::exchange(dropped_, true)) return;
  stream_.close();
  port_.http_connections.erase(id_);
}

void HttpConnection::expire() {
  if (answer_.empty()) ++hub_.counters.head_timeouts;
  drop();
}

void HttpConnection::head_read(const ErrorCode& ec) {
  if (dropped_) return;
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow)
    return refuse(431, fmt::format("the request head is beyond {} bytes", options_.head_bytes_max));
  if (ec == http::error::body_limit) return refuse(413, "request bodies are not taken");
  const bool cut_off = ec == http::error::end_of_stream || ec == http::error::partial_message;
  if (ec && !cut_off && ec.category() == make_error_code(http::error::bad_method).category())
    return refuse(400, "this is no HTTP request");
  if (ec) return drop();
  if (parser_.chunked()) return refuse(400, "request bodies are not taken");
  const Request& request = parser_.get();
  const bool asks = request.method() == http::verb::get &&
                    http::token_list(request[http::field::connection]).exists("upgrade") &&
                    http::token_list(request[http::field::upgrade]).exists("websocket");
  if (asks && port_.events) return upgrade(request);
  answer_http(request);
}

void HttpConnection::answer_http(const Request& request) {
  const std::string method(request.method_string());
  HttpReply reply = port_.http({.method = method, .target = std::string(request.target())});
  if (port_.events && reply.status == 404 && method == "GET") {
    const char* what = request[http::field::connection].empty() ? "missing" : "invalid";
    reply = {
        .status = 426,
        .body = fmt::format(
            "Failed to open a WebSocket connection: {} Connection header.\n\nYou cannot access a "
            "WebSocket server directly with a browser. You need a WebSocket client.\n",
            what)};
  }
  answer(reply, method != "HEAD");
}

void HttpConnection::upgrade(const Request& request) {
  const HttpReply reply = refusal(request);
  if (reply.status != 101) return answer(reply);
  ErrorCode ignored;  // the peer may be gone
  const auto end = stream_.socket().remote_endpoint(ignored).address();
  const bool mapped = end.is_v6() && end.to_v6().is_v4_mapped();
  const std::string address =
      mapped ? asio::ip::make_address_v4(asio::ip::v4_mapped, end.to_v6()).to_string()
             : end.to_string();
  const auto socket = std::make_shared<WebSocketConnection>(
      hub_, port_, id_, std::move(stream_),
      Peer{.address = address, .target = std::string(request.target())});
  ++port_.open;
  hub_.websockets[id_] = socket;
  port_.http_connections.erase(id_);
  socket->accept(request);
}

// 101 when there is nothing against it.
HttpReply HttpConnection::refusal(const Request& request) {
  const auto counted = [](std::atomic<int64_t>& counter, int status, std::string body) {
    ++counter;
    return HttpReply{.status = status, .body = std::move(body)};
  };
  const auto key = request[http::field::sec_websocket_key];
  const auto version = request[http::field::sec_websocket_version];
  std::string bad;
  if (request.version() != 11 || request[http::field::host].empty())
    bad = "HTTP/1.1 with a Host header is wanted";
  else if (key.empty())
    bad = "missing Sec-WebSocket-Key header";
  else if (key.size() != 24 || !key.ends_with("=="))  // 16 bytes in base64
    bad = "invalid Sec-WebSocket-Key header";
  else if (version != "13")
    bad = fmt::format("invalid Sec-WebSocket-Version header: {}", std::string(version));
  else if (buffer_.size() > 0)
    bad = "there are bytes after the request";
  if (!bad.empty())
    return counted(hub_.counters.bad_handshake, 400,
                   fmt::format("Failed to open a WebSocket connection: {}.\n", bad));
  const auto origin = request.find(http::field::origin);
  const auto host = request[http::field::host];
  if (origin != request.end() && !is_allowed({origin->value().data(), origin->value().size()},
                                             {host.data(), host.size()}, options_.origins))
    return counted(hub_.counters.bad_origin, 403, "This Origin is not allowed.\n");
  const auto given = request[http::field::authorization];
  if (!options_.api_key.empty() &&
      !same_secret({given.data(), given.size()}, "Api-Key " + options_.api_key))
    return counted(hub_.counters.unauthorized, 401,
                   "An API key is wanted: Authorization: Api-Key KEY\n");
  if (!port_.listening) return {.status = 503, .body = "The server is stopping.\n"};
  if (port_.open >= options_.connections_max)
    return counted(hub_.counters.over_capacity, 503,
                   fmt::format("All {} connections are in use.\n", options_.connections_max));
  return {.status = 101, .body = ""};
}

void HttpConnection::refuse(int status, const std::string& why) {
  ++hub_.counters.bad_handshake;
  answer({.status = status, .body = why + "\n"});
}

void HttpConnection::answer(const HttpReply& reply, bool with_body) {
  deadline_ = Clock::now() + seconds(options_.head_timeout_s);
  const auto status = http::int_to_status(static_cast<unsigned>(reply.status));
  const char* more = reply.status == 426   ? "Upgrade: websocket\r\n"
                     : reply.status == 401 ? "WWW-Authenticate: Api-Key\r\n"
                                           : "";
  answer_ = fmt::format(
      "HTTP/1.1 {} {}\r\nConnection: close\r\nContent-Length: {}\r\nContent-Type: {}\r\n{}\r\n{}",
      reply.status, std::string(http::obsolete_reason(status)), reply.body.size(),
      reply.content_type, more, with_body ? reply.body : "");
  asio::async_write(stream_, asio::buffer(answer_),
                    [self = shared_from_this()](const ErrorCode& ec, size_t) {
                      if (ec || self->dropped_) return self->drop();
                      ErrorCode ignored;
                      self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
                      self->hub_.linger(std::move(self->stream_));
                      self->drop();
                    });
}
}  // namespace tendon::wire
