// One websocket connection.
#include <algorithm>

#include "serve/network_parts.h"

namespace tendon::wire {
namespace {

constexpr size_t kQueueBytesMax = 16 << 20;
constexpr size_t kFirstBytes = 4096;  // what an idle connection's buffer holds
constexpr size_t kFrameBytesMin = 6;  // header and mask of an empty frame
constexpr size_t kReasonBytesMax = 123;

}  // namespace

void WebSocketConnection::accept(const http::request<http::empty_body>& request) {
  ws_.auto_fragment(false);
  ws_.read_message_max(options_.message_bytes_max);
  ws_.control_callback([this](websocket::frame_type frame, auto) { saw(frame); });
  ws_.set_option(websocket::stream_base::decorator(
      [](websocket::response_type& response) { response.set(http::field::server, "tendon"); }));
  ws_.async_accept(request, [self = shared_from_this()](const ErrorCode& ec) {
    if (ec || self->finished_) return self->finish(false);
    self->deadline_.reset();
    self->opened_ = true;
    self->traffic().claim();
    self->port_.events->opened(self->id_, self->peer_);
    self->read();
  });
}

void WebSocketConnection::saw(websocket::frame_type frame) {
  if (frame == websocket::frame_type::ping) ++hub_.counters.pings;
  if (frame == websocket::frame_type::close && !deadline_)
    deadline_ = Clock::now() + seconds(kCloseSeconds);
  traffic().unclaimed_bytes = 0;
  if (message_bytes_ == 0 && fragments_ == 0) traffic().claim();
}

// Grows with what has arrived, never with what a header claims.
void WebSocketConnection::read() {
  if (closing_ || finished_) return;
  try {
    if (message_bytes_ == message_.size())
      message_.resize(std::min(std::max(kFirstBytes, 2 * message_bytes_),
                               std::max(options_.message_bytes_max, message_bytes_) + 1));
  } catch (const std::bad_alloc&) {
    ++hub_.counters.too_big;
    return close(CloseCode::too_big, "no memory for a message of this size");
  }
  ws_.async_read_some(
      asio::buffer(message_.data() + message_bytes_, message_.size() - message_bytes_),
      [self = shared_from_this()](const ErrorCode& ec, size_t n) { self->read_some(ec, n); });
}

void WebSocketConnection::read_some(const ErrorCode& ec, size_t n) {
  if (finished_) return;
  if (ec) return read_failed(ec);
  traffic().unclaimed_bytes = 0;
  message_bytes_ += n;
  if (ws_.got_text() && !options_.text_messages)
    return close(CloseCode::unsupported, "only binary messages are understood");
  if (ws_.is_message_done()) return message_done();
  // One byte or none is left of the frame: Beast does not say which of them.
  if (ws_.read_size_hint(1) <= 1 && ++fragments_ > options_.fragments_max)
    return too_many_fragments();
  read();
}

void WebSocketConnection::message_done() {
  Bytes message = std::exchange(message_, {});
  message.resize(std::exchange(message_bytes_, 0));
  fragments_ = 0;
  traffic().claim();
  if (closing_) return;
  if (port_.events->received(id_, std::move(message), ws_.got_text())) return read();
  paused_ = true;
}

void WebSocketConnection::read_failed(const ErrorCode& ec) {
  const bool ours = ec.category() == make_error_code(websocket::error::closed).category();
  if (ec == websocket::error::message_too_big)
    ++hub_.counters.too_big;
  else if (ec == websocket::condition::protocol_violation)
    ++hub_.counters.protocol_errors;
  // A closing stream takes the read away from us and goes on by itself.
  if (closing_ && ec == asio::error::operation_aborted && deadline_) return;
  finish(ours);
}

void WebSocketConnection::too_many_fragments() {
  ++hub_.counters.too_big;
  close(CloseCode::too_big, fmt::format("more than {} fragments", options_.fragments_max));
}

void WebSocketConnection::resume() {
  if (!std::exchange(paused_, false)) return;
  traffic().last_in = Clock::now();  // what it sent meanwhile is not read yet
  read();
}

void WebSocketConnection::send(std::string message, bool text) {
  if (closing_ || finished_ || !opened_) return;
  if (queue_bytes_ > kQueueBytesMax) return cut();
  queue_bytes_ += message.size();
  queue_.push_back({std::move(message), text});
  if (!writing_) write();
}

void WebSocketConnection::write() {
  writing_ = true;
  traffic().last_out = Clock::now();
  ws_.text(queue_.front().text);
  ws_.async_write(asio::buffer(queue_.front().message),
                  [self = shared_from_this()](const ErrorCode& ec, size_t) {
                    WebSocketConnection& s = *self;
                    s.writing_ = false;
                    if (s.finished_) return;
                    if (ec) return s.cut();
                    s.queue_bytes_ -= s.queue_.front().message.size();
                    s.queue_.pop_front();
                    // Pings wait behind a reply and stop the reading: silence begins anew.
                    s.traffic().last_in = Clock::now();
                    s.port_.events->sent(s.id_);
                    if (s.writing_ || s.finished_) return;
                    if (!s.queue_.empty()) return s.write();
                    if (s.closing_) s.start_close();
                  });
}

void WebSocketConnection::close(CloseCode code, std::string_view reason) {
  if (closing_ || finished_) return;
  if (reason.size() > kReasonBytesMax) {
    size_t end = kReasonBytesMax;
    while (end > 0 && (reason[end] & 0xc0) == 0x80) --end;  // never within a character of UTF-8
    reason = reason.substr(0, end);
  }
  closing_.emplace(static_cast<websocket::close_code>(code),
                   beast::string_view(reason.data(), reason.size()));
  if (!writing_) start_close();
}

void WebSocketConnection::start_close() {
  deadline_ = Clock::now() + seconds(kCloseSeconds);
  if (!ws_.is_open()) return;  // the peer or an error came first
  ws_.async_close(*closing_,
                  [self = shared_from_this()](const ErrorCode& ec) { self->finish(!ec); });
}

void WebSocketConnection::tick(Time now) {
  if (finished_) return;
  // Beast may be sending its close frame for an error that it has not reported yet.
  if (opened_ && !ws_.is_open() && !deadline_) deadline_ = now + seconds(kCloseSeconds);
  if (deadline_ && now > *deadline_) return cut();
  if (deadline_) return;
  const Time stalled = now - seconds(options_.silence_max_s);
  const bool listening = !paused_ && !closing_;
  if (writing_ ? traffic().last_out < stalled : listening && traffic().last_in < stalled) {
    ++hub_.counters.silent;
    return cut();
  }
  if (!listening) return;
  // Empty fragments are invisible but for their bytes.
  if (traffic().unclaimed_bytes > kFrameBytesMin * static_cast<size_t>(options_.fragments_max))
    return too_many_fragments();
  if (traffic().waiting_since &&
      *traffic().waiting_since < now - seconds(options_.message_timeout_s)) {
    ++hub_.counters.message_timeouts;
    return close(CloseCode::policy_violation,
                 fmt::format("a message took longer than {} s", options_.message_timeout_s));
  }
  keep_alive(now);
}

void WebSocketConnection::keep_alive(Time now) {
  const Time quiet = now - seconds(options_.ping_after_s);
  if (pinging_ || traffic().last_in > quiet || last_ping_ > quiet) return;
  pinging_ = true;
  last_ping_ = now;
  ws_.async_ping({}, [self = shared_from_this()](const ErrorCode&) { self->pinging_ = false; });
}

// Later, so that whoever called us finds what it iterates over unchanged.
void WebSocketConnection::cut() {
  ws_.next_layer().close();
  asio::post(hub_.loop, [self = shared_from_this()] { self->finish(false); });
}

void WebSocketConnection::finish(bool politely) {
  if (std::exchange(finished_, true)) return;
  const auto self = shared_from_this();
  hub_.websockets.erase(id_);
  --port_.open;
  if (politely)
    hub_.linger(std::move(ws_.next_layer()));
  else
    ws_.next_layer().close();
  if (opened_) port_.events->closed(id_);
}

}  // namespace tendon::wire
