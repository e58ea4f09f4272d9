// labels: server
// What peers do that mean no good, or are broken. Timeouts are scaled down from those of the
// server.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <deque>
#include <random>
#include <set>

#include "stub_server.h"

namespace tendon {
namespace {

// AddressSanitizer keeps what was freed in quarantine.
constexpr bool kMemoryIsComparable = !TENDON_TEST_SANITIZED;

// Messages that come back one after the other in that time.
int echoes(WebSocketClient& client, double for_s) {
  int count = 0;
  for (const double end = now_s() + for_s; now_s() < end; ++count) expect_echo(client);
  return count;
}

// The close code that a fresh connection gets for these bytes; 0: none.
int close_code_for(const TestServer& server, const std::string& bytes) {
  RawSocket peer = open_websocket(server.port);
  peer.send(bytes);
  peer.shut();
  int code = 0;
  while (const auto got = peer.next_frame()) code = std::max(code, got->close_code());
  return code;
}

TEST(SlowLoris, costs_healthy_clients_nothing_and_is_cut) {
  TestServer server({.handshakes_max = 150, .head_timeout_s = 1, .message_timeout_s = 1});
  WebSocketClient client = server.client();
  const int alone = echoes(client, 0.6);
  std::vector<RawSocket> heads, bodies;
  for (int i = 0; i < 50; ++i) bodies.push_back(open_websocket(server.port));
  // Begins a message and goes on one byte a time.
  for (RawSocket& peer : bodies) peer.send(frame(kBinary, "x", {.claims = 1000}));
  for (int i = 0; i < 200; ++i) heads.emplace_back(server.port);
  std::atomic<bool> over = false;
  std::thread trickling([&] {
    for (size_t i = 0; !over; ++i, std::this_thread::sleep_for(std::chrono::milliseconds(100))) {
      for (RawSocket& peer : heads) peer.send(RawSocket::handshake().substr(i % 100, 1));
      for (RawSocket& peer : bodies) peer.send("x");
    }
  });
  const int attacked = echoes(client, 0.6);
  { WebSocketClient newcomer = server.client(); }  // a handshake still gets through
  EXPECT_GT(attacked, alone / 20);  // one that waits for slow peers answers once or not at all
  for (RawSocket& peer : bodies) {
    EXPECT_EQ(peer.frame_or_none().close_code(), 1008);
    peer.until_end();
    EXPECT_TRUE(peer.ended());
  }
  for (RawSocket& peer : heads) {
    peer.until_end();
    EXPECT_TRUE(peer.ended());
  }
  over = true;
  trickling.join();
  const NetworkCounters& counted = server.network.counters();
  EXPECT_EQ(counted.head_timeouts + counted.over_capacity, 200);
  EXPECT_EQ(counted.message_timeouts, 50);
  expect_echo(client);
}

TEST(SlowLoris, on_a_frame_header_is_cut_too) {
  TestServer server({.message_timeout_s = 0.5});
  RawSocket peer = open_websocket(server.port), empty = open_websocket(server.port);
  peer.send(frame(kBinary, "", {.claims = 1 << 20}).substr(0, 5));
  empty.send(frame(kBinary, "", {.fin = false}));
  EXPECT_EQ(peer.frame_or_none().close_code(), 1008);
  EXPECT_EQ(empty.frame_or_none().close_code(), 1008);
}

TEST(Flood, beyond_the_limit_gets_503_and_is_counted) {
  TestServer server({.connections_max = 64});
  std::vector<RawSocket> open;
  for (int i = 0; i < 64; ++i) open.push_back(open_websocket(server.port));
  EXPECT_EQ(RawSocket(server.port).upgrade().substr(0, 12), "HTTP/1.1 503");
  RawSocket probe(server.port);
  probe.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(probe.until_end().starts_with("HTTP/1.1 200"));
  EXPECT_EQ(server.network.counters().over_capacity, 1);
  open.pop_back();
  EXPECT_TRUE(wait_until([&] { return server.closes == 1; }));
  open_websocket(server.port);
}

TEST(Flood, of_connects_leaves_nothing_behind) {
  TestServer server({.handshakes_max = 100});
  WebSocketClient client = server.client();
  const int before = open_files();
  {
    std::deque<RawSocket> peers;
    for (int i = 0; i < 1000; ++i) {
      peers.emplace_back(server.port);
      if (i % 4 == 0) peers.back().send("GET /");
      if (i >= 300) peers.pop_front();  // within the limit of open files
    }
    expect_echo(client);
    ASSERT_TRUE(wait_until([&] { return server.network.counters().accepted == 1001; }));
    EXPECT_LE(open_files(), before + 300 + 100 + 1);
  }
  EXPECT_TRUE(wait_until([&] { return open_files() == before; }));
  expect_echo(client);
}

TEST(Flood, of_ten_thousand_open_and_close_cycles_leaves_nothing_behind) {
  TestServer server;
  const int before = open_files();
  size_t resident = 0;
  const int cycles = kMemoryIsComparable ? 10'000 : 2000;
  for (int i = 0; i < cycles; ++i) {
    if (i == cycles / 5) resident = resident_bytes();
    RawSocket peer = open_websocket(server.port);
    if (i % 2 == 0) {
      peer.send(frame(kClose, "\x03\xe8"));
      peer.until_end();
    } else {
      peer.reset_on_close();
    }
  }
  EXPECT_TRUE(wait_until([&] { return open_files() == before; }));
  EXPECT_EQ(server.opens, cycles);
  EXPECT_TRUE(wait_until([&] { return server.closes == cycles; }));
  if (kMemoryIsComparable) {
    EXPECT_LT(resident_bytes(), resident + (1 << 20));
  }
}

TEST(Flood, that_takes_every_open_file_is_survived) {
  TestServer server;
  WebSocketClient client = server.client();
  // UBSan opens a pipe for every type that it has not seen yet, and calls it broken where it
  // cannot.
  expect_echo(client);
  std::atomic<bool> asleep = true;
  server.network.post([&] {
    while (asleep) std::this_thread::yield();
  });
  std::vector<RawSocket> peers;
  for (int i = 0; i < 10; ++i) peers.emplace_back(server.port);
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  // About three more than there are.
  const rlimit few{.rlim_cur = static_cast<rlim_t>(open_files() + 3), .rlim_max = files.rlim_max};
  setrlimit(RLIMIT_NOFILE, &few);
  asleep = false;
  expect_echo(client);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(server.network.counters().accepted, 9);
  expect_echo(client);
  setrlimit(RLIMIT_NOFILE, &files);
  EXPECT_TRUE(wait_until([&] { return server.network.counters().accepted == 11; }));
  EXPECT_TRUE(peers.back().upgrade().starts_with("HTTP/1.1 101"));
}

TEST(Oversize, is_refused_without_room_for_it) {
  TestServer server({.message_bytes_max = 64 << 20});
  close_code_for(server, frame(kBinary, "x", {.claims = 64 << 20}));
  const size_t resident = resident_bytes();
  for (const uint64_t claimed : {(64ull << 20) + 1, 1ull << 32, 1ull << 63, ~0ull})
    EXPECT_EQ(close_code_for(server, frame(kBinary, "x", {.claims = claimed})), 1009) << claimed;
  EXPECT_TRUE(wait_until([&] { return server.network.counters().too_big == 4; }));
  // What is allowed, but does not come.
  std::vector<RawSocket> peers;
  for (int i = 0; i < 30; ++i) {
    peers.push_back(open_websocket(server.port));
    peers.back().send(frame(kBinary, "ten bytes.", {.claims = 64 << 20}));
  }
  WebSocketClient client = server.client();
  expect_echo(client);
  if (kMemoryIsComparable) {
    EXPECT_LT(resident_bytes(), resident + (2 << 20));
  }
}

TEST(Oversize, by_parts_counts_as_well) {
  TestServer server({.message_bytes_max = 1000});
  const std::string part(500, 'x');
  EXPECT_EQ(close_code_for(server, frame(kBinary, part, {.fin = false}) +
                                       frame(kContinuation, part, {.fin = false}) +
                                       frame(kContinuation, "y")),
            1009);
  RawSocket peer = open_websocket(server.port);
  peer.send(frame(kBinary, part, {.fin = false}) + frame(kContinuation, part, {.fin = false}) +
            frame(kContinuation, ""));
  EXPECT_EQ(peer.frame_or_none().payload, part + part);
}

TEST(Fragments, beyond_their_limit_close_with_1009) {
  TestServer server({.fragments_max = 4096});
  std::string bytes = frame(kBinary, "two", {.fin = false});
  std::string empty = frame(kBinary, "", {.fin = false});
  for (int i = 0; i < 10'000; ++i) {
    bytes += frame(kContinuation, "two", {.fin = false});
    empty += frame(kContinuation, "", {.fin = false});
  }
  for (const std::string& hostile : {bytes, empty}) {
    RawSocket peer = open_websocket(server.port);
    peer.send(hostile);
    EXPECT_EQ(peer.frame_or_none().close_code(), 1009);
  }
  EXPECT_EQ(server.network.counters().too_big, 2);
}

TEST(Fragments, are_not_segments) {
  TestServer server({.fragments_max = 4});
  RawSocket peer = open_websocket(server.port);
  const std::string message(3000, 'm'), bytes = frame(kBinary, message);
  for (size_t i = 0; i < bytes.size(); i += 100) {
    peer.send(bytes.substr(i, 100));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(peer.frame_or_none().payload, message);
}

// Reads nothing, but its pings show that it is there.
TEST(FrozenClient, is_cut_and_others_do_not_notice) {
  TestServer server({.silence_max_s = 1.5}, [](Network& network, ConnectionId id, Bytes message) {
    const size_t bytes = message.size() == 6 ? 12 << 20 : message.size();
    network.send(id, std::string(bytes, 7));
    return true;
  });
  WebSocketClient client = server.client();
  RawSocket frozen = open_websocket(server.port, 4096);
  const double begin = now_s();
  frozen.send(frame(kBinary, "frozen"));
  ASSERT_TRUE(wait_until([&] { return server.messages == 1; }));
  int echoed = 0;
  EXPECT_TRUE(wait_until([&] {
    frozen.send(frame(kPing, ""));
    expect_echo(client);
    ++echoed;
    return server.closes > 0;
  }));
  EXPECT_GE(now_s() - begin, 1.5);
  EXPECT_GT(echoed, 5);  // before the other was cut
  EXPECT_EQ(server.network.counters().silent, 1);
}

TEST(FrozenClient, cannot_make_the_server_hoard_replies) {
  TestServer server({}, [](Network& network, ConnectionId id, Bytes) {
    network.send(id, std::string(1 << 20, 'r'));
    return true;
  });
  RawSocket frozen = open_websocket(server.port, 4096);
  for (int i = 0; i < 40; ++i) frozen.send(frame(kBinary, "more"));
  EXPECT_TRUE(wait_until([&] { return server.closes == 1; }));
  EXPECT_LE(server.messages, 30);
}

TEST(Frames, that_break_a_rule_get_its_close_code) {
  TestServer server({.text_messages = true});
  const std::vector<std::pair<std::string, int>> cases = {
      {frame(kBinary, "x", {.masked = false}), 1002},
      {frame(kBinary, "x", {.reserved = 4}), 1002},
      {frame(kBinary, "x", {.reserved = 1}), 1002},
      {frame(3, "x"), 1002},
      {frame(11, "x"), 1002},
      {frame(kContinuation, "x"), 1002},
      {frame(kBinary, "x", {.fin = false}) + frame(kBinary, "x"), 1002},
      {frame(kPing, "x", {.fin = false}), 1002},
      {frame(kPing, std::string(126, 'x')), 1002},
      {frame(kClose, "x"), 1002},
      {frame(kClose, "\x03\xed"), 1002},
      {frame(kClose, "\x03\xe8"), 1000},
      {frame(kText, "\xc3\x28"), 1007},
      {frame(kText, "\xed\xa0\x80"), 1007},
      {frame(kText, "\xc3"), 1007},
  };
  for (const auto& [bytes, code] : cases) {
    RawSocket peer = open_websocket(server.port);
    peer.send(bytes);
    EXPECT_EQ(peer.frame_or_none().close_code(), code) << testing::PrintToString(bytes);
  }
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

// A few bytes changed, inserted, removed or cut off, mostly near the beginning.
std::string mutated(std::string bytes, std::mt19937& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random()) % n; };
  for (size_t changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes) {
    const size_t at = below(below(2) == 0 ? bytes.size() : std::min<size_t>(bytes.size(), 14));
    switch (below(5)) {
      case 0: bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(8)); break;
      case 1: bytes[at] = static_cast<char>(random()); break;
      case 2: bytes.erase(at, 1 + below(8)); break;
      case 3: bytes.insert(at, 1 + below(8), static_cast<char>(random())); break;
      default: bytes.resize(at); break;
    }
  }
  return bytes;
}

// Frames of every kind with a few bytes changed.
std::string mutated_frames(std::mt19937& random) {
  static const std::vector<std::string> seeds = {
      frame(kBinary, "observation"),
      frame(kText, "gr\xc3\xbc\xc3\x9f dich"),
      frame(kBinary, std::string(300, 'b')) + frame(kPing, "p"),
      frame(kBinary, std::string(70'000, 'c')),
      frame(kText, "a", {.fin = false}) + frame(kPing, "p") + frame(kContinuation, "b"),
      frame(kClose, "\x03\xe8 bye"),
      wire_fixture("session_c2s.bin").substr(256),
  };
  return mutated(seeds[random() % seeds.size()], random);
}

// Wrong bytes on a connection of their own each; after every hundredth a healthy client looks in.
void send_wrong_frames(int count) {
  StubServer server({.policy = {.message_bytes_max = 1 << 20}});
  const std::string request = stub_request();
  const std::set<int> allowed = {0, 1000, 1002, 1003, 1005, 1007, 1009};
  std::mt19937 random(2);
  int closes = 0, texts = 0, replies = 0;
  std::vector<double> next_ms;  // that a healthy client waited
  for (int i = 0; i < count && !testing::Test::HasFailure(); ++i) {
    RawSocket peer = open_websocket(server.port());
    const bool any_byte = i % 3 != 0;  // may be wrong
    peer.send(any_byte ? mutated_frames(random) : wrong_frames(request, random));
    peer.shut();
    while (const std::optional<Frame> got = peer.next_frame()) {
      texts += got->opcode == kText;
      replies += got->opcode == kBinary;
      if (got->opcode != kClose) continue;
      ++closes;
      // A close frame among the wrong ones is answered with its own code.
      const int code = got->close_code();
      EXPECT_TRUE(allowed.contains(code) || (any_byte && code >= 1000 && code < 1015) ||
                  code >= 3000)
          << i << ": " << code;
    }
    if (i % 100 != 0) continue;
    const double begin = now_s();
    WebSocketClient client = server.client();
    EXPECT_FALSE(ask(client, request).text);
    next_ms.push_back((now_s() - begin) * 1e3);
  }
  EXPECT_GT(closes, count / 4);
  fmt::print(
      "row 2: {} malformed messages: {} closes, {} texts, {} replies; the next client waited "
      "{:.1f} ms (p99), at most {:.1f} ms\n",
      count, closes, texts, replies, percentile_of(next_ms, 0.99), percentile_of(next_ms, 1));
}

TEST(Frames, that_are_wrong_disturb_nobody) {
  send_wrong_frames(kMemoryIsComparable ? 15'000 : 8000);
}
TEST(Frames, slow_a_million_times_wrong_disturb_nobody) { send_wrong_frames(1'000'000); }

}  // namespace
}  // namespace tendon
