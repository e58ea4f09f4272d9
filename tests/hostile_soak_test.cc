// labels: hostile
// The server for a long time: a million requests without growth, a million malformed frames without
// a client that notices.
#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <set>

#include "network_peers.h"
#include "stub_server.h"
#include "tensor/percentile.h"

namespace tendon {
namespace {

std::vector<double> actions(const WebSocketClient::Message& reply) {
  EXPECT_FALSE(reply.text);
  const msgpack::Value message = msgpack::decode(reply.bytes);
  const msgpack::Array& array = message.find("actions")->array;
  std::vector<double> out;
  for (int64_t i = 0; i < array.size(); ++i) out.push_back(array.number(i));
  return out;
}

double p99(std::vector<double> values) {
  std::ranges::sort(values);
  return percentile(std::span<const double>(values), 0.99);
}

// Row 25: equal answers to equal requests, on a new connection for every hundred.
TEST(Soak, slow_of_a_million_requests_leaves_nothing_behind) {
  constexpr int kConnections = 10'000, kRequests = 100, kWarm = 1000;
  StubServer server;
  const std::string request = stub_request(64);
  std::vector<double> first, early_ms(kWarm * kRequests), late_ms(kWarm * kRequests);
  size_t resident = 0;
  int files = 0;
  for (int connection = 0; connection < kConnections; ++connection) {
    if (connection == kWarm) {
      resident = resident_bytes();
      files = open_files();
    }
    WebSocketClient client = server.client();
    for (int i = 0; i < kRequests; ++i) {
      const double begin = now_s();
      const std::vector<double> now = actions(ask(client, request));
      const double ms = (now_s() - begin) * 1e3;
      if (first.empty()) first = now;
      ASSERT_EQ(now, first) << connection;
      const auto at = static_cast<size_t>(connection % kWarm * kRequests + i);
      if (connection / kWarm == 1) early_ms[at] = ms;
      if (connection / kWarm == kConnections / kWarm - 1) late_ms[at] = ms;
    }
    client.close();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const auto grown = static_cast<int64_t>(resident_bytes()) - static_cast<int64_t>(resident);
  EXPECT_LE(open_files(), files);
  // The page's history of five minutes is not full yet: 60 slices of at most 4096 floats.
  constexpr int64_t kHistoryBytes = 60 * 4096 * sizeof(float);
  EXPECT_LT(grown, (1 << 20) + kHistoryBytes);
  fmt::print("row 25: {} requests, {} connections, {} KiB grown, p99 {:.3f} ms, then {:.3f} ms\n",
             kConnections * kRequests, kConnections, grown / 1024, p99(early_ms), p99(late_ms));
}

// A valid message cut into frames, of which one field of one frame is wrong.
std::string wrong_frames(const std::string& request, std::mt19937& random) {
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  std::string payload = request;
  if (char& byte = payload[below(static_cast<uint32_t>(payload.size()))]; below(2) == 0)
    byte = static_cast<char>(byte ^ 1 << below(8));
  const size_t cut = below(static_cast<uint32_t>(payload.size()));
  uint8_t opcode = kBinary, rest_opcode = kContinuation;
  FrameOptions head{.fin = false}, rest;
  std::string between;
  switch (below(9)) {
    case 0: head.fin = true; break;  // the rest continues nothing
    case 1: head.masked = false; break;
    case 2: rest.reserved = static_cast<int>(1 + below(7)); break;
    case 3: head.claims = cut + 1 + below(1 << 30); break;
    case 4: head.claims = uint64_t{1} << (20 + below(44)); break;
    case 5: opcode = static_cast<uint8_t>(below(16)); break;
    case 6: rest_opcode = static_cast<uint8_t>(below(16)); break;
    case 7: between = frame(kPing, std::string(below(200), 'p'), {.fin = below(4) != 0}); break;
    default: rest.claims = below(static_cast<uint32_t>(payload.size() - cut)); break;
  }
  return frame(opcode, payload.substr(0, cut), head) + between +
         frame(rest_opcode, payload.substr(cut), rest);
}

// Row 2: a close with the right code or a text; every hundredth time a client looks in.
void send_wrong_frames(int count) {
  StubServer server({.policy = {.message_bytes_max = 1 << 20}});
  const std::string request = stub_request(4);
  const std::set<int> allowed = {0, 1000, 1002, 1003, 1005, 1007, 1009};
  std::mt19937 random(2);
  int closed = 0, texts = 0, replies = 0;
  std::vector<double> next_ms;
  for (int i = 0; i < count; ++i) {
    RawSocket peer = open_websocket(server.port());
    peer.next_frame();  // the greeting
    peer.send(wrong_frames(request, random));
    peer.shut();
    while (const std::optional<Frame> got = peer.next_frame()) {
      texts += got->opcode == kText;
      replies += got->opcode == kBinary;
      if (got->opcode != kClose) continue;
      // A close frame among the wrong ones is answered with its own code.
      const int code = got->close_code();
      ASSERT_TRUE(allowed.contains(code) || code >= 3000) << i << ": " << code;
      ++closed;
    }
    if (i % 100 != 0) continue;
    const double begin = now_s();
    WebSocketClient client = server.client();
    ASSERT_FALSE(ask(client, request).text);
    next_ms.push_back((now_s() - begin) * 1e3);
  }
  EXPECT_GT(closed, count / 4);
  std::ranges::sort(next_ms);
  fmt::print(
      "row 2: {} malformed messages: {} closes, {} error texts, {} replies; the next client "
      "waited {:.1f} ms (p99), at most {:.1f} ms\n",
      count, closed, texts, replies, p99(next_ms), std::ranges::max(next_ms));
}

TEST(Frames, of_which_one_field_is_wrong_disturb_nobody) { send_wrong_frames(5000); }
TEST(Frames, slow_a_million_times_wrong_disturb_nobody) { send_wrong_frames(1'000'000); }

}  // namespace
}  // namespace tendon
