// Both ends for the network tests: a server on a thread, and raw sockets that may do anything.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/websocket_client.h"
#include "serve/network.h"
#include "tensor/percentile.h"

namespace tendon {

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What takes longer hangs. No test asserts how fast the machine is, which may be busy.
constexpr double kHangSeconds = 60;

// Until it is true; false: never.
inline bool wait_until(const std::function<bool()>& holds) {
  for (const double end = now_s() + kHangSeconds; now_s() < end;
       std::this_thread::sleep_for(std::chrono::milliseconds(5)))
    if (holds()) return true;
  return holds();
}

inline int open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return static_cast<int>(std::distance(files, {}));
}

inline size_t resident_bytes() {
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return pages * 4096;
}

inline double percentile_of(std::vector<double> values, double part) {
  std::ranges::sort(values);
  return percentile(std::span<const double>(values), part);
}

inline std::string wire_fixture(const std::string& name) {
  std::ifstream file(TENDON_TEST_PROTOCOL "/wire/" + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

// Sends everything back unless `script` says otherwise, after the greeting where there is one; as
// text what begins with "text".
class TestServer : public WebSocketEvents {
 public:
  using Script = std::function<bool(Network&, ConnectionId, Bytes)>;
  explicit TestServer(const WebSocketOptions& options = {}, Script script = nullptr,
                      std::optional<std::string> greeting = {})
      : script_(std::move(script)), greeting_(std::move(greeting)) {
    port = network.listen(options, this, [](const HttpRequest& request) {
      if (request.target == "/healthz") return HttpReply{.body = "OK\n"};
      return HttpReply{.status = 404, .body = "not found\n"};
    });
    thread_ = std::thread([this] { network.run(); });
  }
  ~TestServer() override { stop(); }
  void stop() {
    network.stop();
    if (thread_.joinable()) thread_.join();
  }
  std::string url() const { return "127.0.0.1:" + std::to_string(port); }
  WebSocketClient client() const { return {url(), {}}; }
  void opened(ConnectionId id, const Peer& peer) override {
    last_id = id;
    ids.push_back(id);
    last_peer = peer;
    ++opens;
    if (greeting_) network.send(id, *greeting_, greeting_->starts_with("text"));
  }
  bool received(ConnectionId id, Bytes message, bool text) override {
    ++messages;
    if (script_) return script_(network, id, std::move(message));
    network.send(id, std::string(message.begin(), message.end()), text);
    return true;
  }
  void sent(ConnectionId) override { ++sends; }
  void closed(ConnectionId) override { ++closes; }

  Network network;
  uint16_t port = 0;
  std::atomic<int> opens = 0, closes = 0, messages = 0, sends = 0;
  std::atomic<ConnectionId> last_id = 0;
  std::vector<ConnectionId> ids;  // that opened; of the network's thread
  Peer last_peer;                 // read it after `opens` says so

 private:
  Script script_;
  const std::optional<std::string> greeting_;
  std::thread thread_;
};

constexpr uint8_t kContinuation = 0, kText = 1, kBinary = 2, kClose = 8, kPing = 9, kPong = 10;

struct FrameOptions {
  bool fin = true, masked = true;
  int reserved = 0;                     // three bits
  std::optional<uint64_t> claims = {};  // another length than the payload's
};

inline std::string frame(uint8_t opcode, const std::string& payload, FrameOptions options = {}) {
  const uint64_t length = options.claims.value_or(payload.size());
  const int mask_bit = options.masked ? 0x80 : 0;
  std::string out;
  const auto put = [&](uint64_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; --i) out += static_cast<char>(value >> (8 * i));
  };
  out += static_cast<char>((options.fin ? 0x80 : 0) | options.reserved << 4 | opcode);
  if (length < 126) {
    out += static_cast<char>(mask_bit | static_cast<int>(length));
  } else {
    const bool wide = length > 65535;
    out += static_cast<char>(mask_bit | (wide ? 127 : 126));
    put(length, wide ? 8 : 2);
  }
  if (!options.masked) return out + payload;
  const std::string mask = "\x11\x22\x33\x44";
  out += mask;
  for (size_t i = 0; i < payload.size(); ++i) out += static_cast<char>(payload[i] ^ mask[i % 4]);
  return out;
}

struct Frame {
  uint8_t opcode = 0;
  std::string payload;
  int close_code() const {
    if (opcode != kClose || payload.size() < 2) return 0;
    return static_cast<uint8_t>(payload[0]) << 8 | static_cast<uint8_t>(payload[1]);
  }
};

class RawSocket {
 public:
  explicit RawSocket(uint16_t port, int receive_bytes = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_bytes > 0)
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in end{};
    end.sin_family = AF_INET;
    end.sin_port = htons(port);
    end.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&end), sizeof(end)), 0);
  }
  RawSocket(RawSocket&& other) noexcept { *this = std::move(other); }
  RawSocket& operator=(RawSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(got_, other.got_);
    std::swap(ended_, other.ended_);
    return *this;
  }
  ~RawSocket() {
    if (fd_ >= 0) ::close(fd_);
  }
  // The next close() resets the connection.
  void reset_on_close() const {
    const linger now{.l_onoff = 1, .l_linger = 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  }
  void shut() const { shutdown(fd_, SHUT_WR); }
  // False: the server is gone.
  bool send(const std::string& bytes) const {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<size_t>(n);
    }
    return true;
  }
  // More of what the server says; false: it closed, or nothing came in time.
  bool fill(double limit_s = kHangSeconds) {
    pollfd ready{.fd = fd_, .events = POLLIN, .revents = 0};
    if (ended_ || poll(&ready, 1, static_cast<int>(limit_s * 1e3)) <= 0) return false;
    char some[65536];
    const ssize_t n = recv(fd_, some, sizeof(some), 0);
    ended_ = n <= 0;
    if (!ended_) got_.append(some, static_cast<size_t>(n));
    return !ended_;
  }
  std::string until_end() {
    const double end = now_s() + kHangSeconds;
    while (now_s() < end && fill(end - now_s())) continue;
    return std::exchange(got_, {});
  }
  std::string head() {
    size_t end = 0;
    while ((end = got_.find("\r\n\r\n")) == got_.npos)
      if (!fill()) return std::exchange(got_, {});
    const std::string text = got_.substr(0, end + 4);
    got_.erase(0, end + 4);
    return text;
  }
  std::string upgrade(const std::string& more = "") {
    send(handshake(more));
    return head();
  }
  static std::string handshake(const std::string& more = "") {
    return "GET / HTTP/1.1\r\nHost: robot\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" +
           more + "\r\n";
  }
  // The server's frames are neither masked nor fragmented.
  std::optional<Frame> next_frame(double limit_s = kHangSeconds) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(got_[i]); };
    const auto have = [&](size_t bytes) {
      while (got_.size() < bytes)
        if (!fill(limit_s)) return false;
      return true;
    };
    if (!have(2)) return std::nullopt;
    EXPECT_EQ(byte(0) & 0xf0, 0x80);
    EXPECT_EQ(byte(1) & 0x80, 0);
    size_t length = byte(1);
    const size_t header = length < 126 ? 2 : length == 126 ? 4 : 10;
    if (!have(header)) return std::nullopt;
    if (header > 2) length = 0;
    for (size_t i = 2; i < header; ++i) length = length << 8 | byte(i);
    if (!have(header + length)) return std::nullopt;
    Frame frame{.opcode = static_cast<uint8_t>(byte(0) & 15),
                .payload = got_.substr(header, length)};
    got_.erase(0, header + length);
    return frame;
  }
  Frame frame_or_none() { return next_frame().value_or(Frame{}); }
  bool ended() const { return ended_; }

 private:
  int fd_ = -1;
  std::string got_;
  bool ended_ = false;
};

inline RawSocket open_websocket(uint16_t port, int receive_bytes = 0) {
  RawSocket socket(port, receive_bytes);
  EXPECT_TRUE(socket.upgrade().starts_with("HTTP/1.1 101"));
  return socket;
}

// A message comes back to a healthy client, within the client's own limit of 10 s.
inline void expect_echo(WebSocketClient& client, size_t bytes = 1000) {
  const Bytes message(bytes, 7);
  client.send(message);
  EXPECT_EQ(client.receive().bytes, message);
}

}  // namespace tendon
