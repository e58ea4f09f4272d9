// labels: server
// What well-meaning clients meet: handshakes, HTTP, messages, pings, keys, ports, the client class.
#include "serve/network.h"

#include <fmt/format.h>

#include <csignal>
#include <numeric>

#include "network_peers.h"
#include "refusals.h"

namespace tendon {
namespace {

std::string line_of(const std::string& head, const std::string& name) {
  const size_t begin = head.find("\r\n" + name + ": ");
  return begin == head.npos ? "" : head.substr(begin + 2, head.find("\r\n", begin + 2) - begin - 2);
}

std::string body_of(const std::string& response) {
  return response.substr(response.find("\r\n\r\n") + 4);
}

std::string first_line(const std::string& response) {
  return response.substr(0, response.find("\r\n"));
}

// All that the server says to these bytes until it closes, or the head of it.
std::string answer(uint16_t port, const std::string& bytes) {
  RawSocket client(port);
  client.send(bytes);
  return client.until_end();
}
std::string head_of_answer(uint16_t port, const std::string& bytes) {
  RawSocket client(port);
  return client.send(bytes), client.head();
}

constexpr const char* kSwitching = "HTTP/1.1 101 Switching Protocols";
// What the server answers to a websocket request with these lines more.
std::string upgrade_answer(uint16_t port, const std::string& more) {
  return first_line(RawSocket(port).upgrade(more));
}

TEST(Handshake, of_every_client_version_is_answered_101) {
  TestServer server;
  for (const char* version :
       {"websockets_11.0", "websockets_12.0", "websockets_13.1", "websockets_14.2",
        "websockets_15.0.1", "websockets_17.4", "api_key"}) {
    const std::string request = wire_fixture(fmt::format("handshake_{}_c2s.bin", version));
    EXPECT_EQ(first_line(head_of_answer(server.port, request)), kSwitching) << version;
  }
}

TEST(Handshake, answers_the_key_like_the_reference) {
  TestServer server;
  const std::string theirs = wire_fixture("session_c2s.bin");
  const std::string reference = wire_fixture("session_s2c.bin");
  const std::string ours =
      head_of_answer(server.port, theirs.substr(0, theirs.find("\r\n\r\n") + 4));
  EXPECT_NE(line_of(ours, "Sec-WebSocket-Accept"), "");
  EXPECT_EQ(line_of(ours, "Sec-WebSocket-Accept"), line_of(reference, "Sec-WebSocket-Accept"));
  const std::string offered =
      RawSocket(server.port).upgrade("Sec-WebSocket-Extensions: permessage-deflate\r\n");
  EXPECT_EQ(first_line(offered), kSwitching);
  EXPECT_EQ(line_of(offered, "Sec-WebSocket-Extensions"), "");
}

TEST(Handshake, must_not_be_followed_by_frames_before_its_answer) {
  TestServer server;
  EXPECT_EQ(first_line(answer(server.port, RawSocket::handshake() + frame(kBinary, "early"))),
            "HTTP/1.1 400 Bad Request");
}

TEST(Handshake, tells_the_address_without_port_and_the_target) {
  TestServer server;
  head_of_answer(server.port, RawSocket::handshake().insert(5, "?queue=latest"));
  ASSERT_TRUE(wait_until([&] { return server.opens == 1; }));
  EXPECT_EQ(server.last_peer.address, "127.0.0.1");
  EXPECT_EQ(server.last_peer.target, "/?queue=latest");
}

TEST(Http, is_answered_like_the_reference) {
  TestServer server;
  for (const char* name : {"healthz", "healthz_query", "no_key", "old_version", "plain_get"}) {
    const std::string file = std::string("http_") + name;
    const std::string ours = answer(server.port, wire_fixture(file + "_request.bin"));
    const std::string reference = wire_fixture(file + "_response.bin");
    EXPECT_EQ(first_line(ours), first_line(reference)) << name;
    EXPECT_EQ(body_of(ours), body_of(reference)) << name;
    for (const char* line : {"Connection", "Content-Length", "Content-Type", "Upgrade"})
      EXPECT_EQ(line_of(ours, line), line_of(reference, line)) << name;
  }
}

TEST(Http, head_request_gets_the_head_alone) {
  TestServer server;
  const std::string ours = answer(server.port, wire_fixture("http_head_healthz_request.bin"));
  EXPECT_EQ(first_line(ours), "HTTP/1.1 200 OK");
  EXPECT_EQ(line_of(ours, "Content-Length"), "Content-Length: 3");
  EXPECT_EQ(body_of(ours), "");
}

TEST(Http, bodies_long_heads_and_noise_are_refused) {
  TestServer server;
  const std::string post = "POST / HTTP/1.1\r\nHost: x\r\n";
  const std::string client_hello("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11);  // of TLS
  for (const auto& [request, code] : {
           std::pair(post + "Content-Length: 5\r\n\r\nhello", "413"),
           {post + "Content-Length: 99999999999999999999\r\n\r\n", "400"},
           {post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "400"},
           {"GET / HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n", "431"},
           {std::string(100000, 'x'), "4"},
           {client_hello + "\r\n\r\n", "400"},
       })
    EXPECT_TRUE(answer(server.port, request).starts_with(fmt::format("HTTP/1.1 {}", code)));
  EXPECT_EQ(server.network.counters().bad_handshake, 6);
  EXPECT_TRUE(answer(server.port, "GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200"));
}

TEST(Http, a_head_that_its_sender_ends_half_way_is_not_answered) {
  TestServer server;
  for (const char* half : {"", "GET /healthz HTTP/1.1\r\nHost: x\r\n"}) {
    RawSocket client(server.port);
    client.send(half);
    client.shut();
    EXPECT_EQ(client.until_end(), "");
  }
}

TEST(Http, a_port_without_websockets_serves_every_request) {
  Network network;
  const auto echo = [](const auto& r) { return HttpReply{.body = r.method + " " + r.target}; };
  const uint16_t port = network.listen({}, nullptr, echo);
  std::thread thread([&] { network.run(); });
  EXPECT_EQ(body_of(answer(port, "GET /metrics?x HTTP/1.1\r\nHost: x\r\n\r\n")), "GET /metrics?x");
  EXPECT_EQ(upgrade_answer(port, ""), "HTTP/1.1 200 OK");
  network.stop();
  thread.join();
}

TEST(Messages, of_every_length_come_back) {
  TestServer server;
  WebSocketClient client = server.client();
  for (const size_t bytes :
       {0U, 1U, 125U, 126U, 4095U, 4096U, 4097U, 65535U, 65536U, 602551U, 5U << 20}) {
    Bytes message(bytes);
    std::iota(message.begin(), message.end(), uint8_t{3});
    client.send(message);
    const WebSocketClient::Message answer = client.receive();
    EXPECT_FALSE(answer.text);
    EXPECT_TRUE(answer.bytes == message) << bytes;
  }
  EXPECT_TRUE(wait_until([&] { return server.sends == 11; }));
}

TEST(Messages, in_fragments_are_put_together) {
  TestServer server;
  RawSocket client = open_websocket(server.port);
  client.send(frame(kBinary, "one ", {.fin = false}) + frame(kContinuation, "", {.fin = false}) +
              frame(kPing, "now") + frame(kContinuation, "message"));
  EXPECT_EQ(client.frame_or_none().opcode, kPong);
  EXPECT_EQ(client.frame_or_none().payload, "one message");
}

TEST(Messages, as_text_close_with_1003_unless_wanted) {
  TestServer server;
  RawSocket client = open_websocket(server.port);
  client.send(frame(kText, "hello"));
  EXPECT_EQ(client.frame_or_none().close_code(), 1003);
  TestServer talker({.text_messages = true});
  RawSocket other = open_websocket(talker.port);
  other.send(frame(kText, "hello"));
  const Frame answer = other.frame_or_none();
  EXPECT_EQ(answer.opcode, kText);
  EXPECT_EQ(answer.payload, "hello");
}

TEST(Messages, queued_before_a_close_arrive_before_it) {
  TestServer server({}, [](Network& network, ConnectionId id, Bytes) {
    for (int i = 0; i < 3; ++i) network.send(id, std::string(1 << 20, static_cast<char>('a' + i)));
    network.close(id, CloseCode::going_away, "the server is stopping");
    network.send(id, "too late");
    return true;
  });
  RawSocket client = open_websocket(server.port);
  client.send(frame(kBinary, "go"));
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(client.frame_or_none().payload, std::string(1 << 20, static_cast<char>('a' + i)));
  const Frame last = client.frame_or_none();
  EXPECT_EQ(last.close_code(), 1001);
  EXPECT_EQ(last.payload.substr(2), "the server is stopping");
  client.send(frame(kClose, last.payload));
  EXPECT_EQ(client.until_end(), "");
  EXPECT_TRUE(client.ended());
  EXPECT_TRUE(wait_until([&] { return server.closes == 1; }));
}

TEST(Messages, a_long_reason_is_cut_between_two_characters) {
  std::string reason;
  while (reason.size() < 300) reason += "\xe2\x82\xac";
  TestServer server({}, [&](Network& network, ConnectionId id, Bytes) {
    network.close(id, CloseCode::internal_error, "x" + reason);
    return true;
  });
  RawSocket client = open_websocket(server.port);
  client.send(frame(kBinary, "go"));
  const Frame close = client.frame_or_none();
  EXPECT_EQ(close.close_code(), 1011);
  EXPECT_EQ(close.payload.substr(2), "x" + reason.substr(0, 120));
}

TEST(Messages, a_close_is_answered_with_its_code) {
  TestServer server;
  RawSocket client = open_websocket(server.port);
  client.send(frame(kClose, "\x0f\xa1 bye"));
  EXPECT_EQ(client.frame_or_none().close_code(), 4001);
  EXPECT_TRUE(wait_until([&] { return server.closes == 1; }));
}

TEST(Messages, a_peer_that_never_hangs_up_is_cut_after_2_s) {
  TestServer server({}, [](Network& network, ConnectionId id, Bytes) {
    network.close(id, CloseCode::normal, "");
    return true;
  });
  const int before = open_files();
  RawSocket client = open_websocket(server.port), browser(server.port);
  browser.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(browser.until_end().starts_with("HTTP/1.1 200"));  // and stays
  const double begin = now_s();
  client.send(frame(kBinary, "go"));
  EXPECT_EQ(client.frame_or_none().close_code(), 1000);
  client.until_end();
  EXPECT_TRUE(client.ended());
  EXPECT_GE(now_s() - begin, 2);
  EXPECT_TRUE(wait_until([&] { return open_files() == before + 2; }));
}

TEST(Pings, a_thousand_in_one_segment_are_all_answered) {
  TestServer server;
  RawSocket client = open_websocket(server.port);
  std::string pings;
  for (int i = 0; i < 1000; ++i) pings += frame(kPing, std::to_string(i));
  client.send(pings);
  for (int i = 0; i < 1000; ++i) {
    const Frame pong = client.frame_or_none();
    ASSERT_EQ(pong.opcode, kPong);
    ASSERT_EQ(pong.payload, std::to_string(i));
  }
  EXPECT_EQ(server.network.counters().pings, 1000);
}

TEST(Pings, are_answered_while_a_reply_is_computed) {
  TestServer server({}, [](Network&, ConnectionId, Bytes) { return true; });
  RawSocket client = open_websocket(server.port);
  client.send(frame(kBinary, "observation") + frame(kPing, "alive?"));
  EXPECT_EQ(client.frame_or_none().payload, "alive?");
  server.network.post([&] { server.network.send(server.last_id, "actions"); });
  EXPECT_EQ(client.frame_or_none().payload, "actions");
}

TEST(Silence, is_met_with_pings_and_cut_only_after_its_limit) {
  TestServer server({.ping_after_s = 0.3, .silence_max_s = 2});
  const double begin = now_s();
  RawSocket mute = open_websocket(server.port), polite = open_websocket(server.port);
  std::atomic<bool> cut = false;
  std::thread answering([&] {
    while (!cut)
      if (const auto got = polite.next_frame(0.1); got && got->opcode == kPing)
        polite.send(frame(kPong, got->payload));
  });
  int pings = 0;
  while (const auto got = mute.next_frame()) pings += got->opcode == kPing ? 1 : 0;
  EXPECT_GE(now_s() - begin, 2);
  EXPECT_TRUE(mute.ended());
  EXPECT_GE(pings, 1);
  cut = true;
  answering.join();
  polite.send(frame(kBinary, "still here"));
  Frame answer = polite.frame_or_none();
  while (answer.opcode == kPing) answer = polite.frame_or_none();
  EXPECT_EQ(answer.payload, "still here");
  EXPECT_EQ(server.network.counters().silent, 1);
}

TEST(Silence, of_a_client_that_is_not_read_is_not_its_fault) {
  TestServer server({.ping_after_s = 0.2, .silence_max_s = 0.6},
                    [](Network&, ConnectionId, Bytes) { return false; });
  RawSocket eager = open_websocket(server.port), waiting = open_websocket(server.port);
  eager.send(frame(kBinary, "one") + frame(kBinary, "two"));
  waiting.send(frame(kBinary, "one"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  EXPECT_EQ(server.messages, 2);
  server.network.post([&] {
    for (const ConnectionId id : server.ids) server.network.resume(id);
  });
  EXPECT_TRUE(wait_until([&] { return server.messages == 3; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(server.closes, 0);
}

TEST(ApiKey, is_wanted_before_the_upgrade) {
  TestServer server({.api_key = "not-a-secret"});
  const std::string good = kSwitching, bad = "HTTP/1.1 401 Unauthorized";
  const auto with = [&](const std::string& value) {
    return upgrade_answer(server.port, "Authorization: " + value + "\r\n");
  };
  EXPECT_EQ(with("Api-Key not-a-secret"), good);
  EXPECT_EQ(upgrade_answer(server.port, ""), bad);
  for (const char* wrong :
       {"Api-Key not-a-secreT", "Api-Key not-a-secre", "Api-Key not-a-secrett", "Api-Key ",
        "not-a-secret", "Bearer not-a-secret", "Api-Key not-a-secretnot-a-secret"})
    EXPECT_EQ(with(wrong), bad) << wrong;
  EXPECT_EQ(with("Api-Key " + std::string(8000, 'k')), bad);
  EXPECT_EQ(server.network.counters().unauthorized, 9);
  EXPECT_EQ(with("Api-Key " + std::string(1 << 20, 'k')).substr(0, 12), "HTTP/1.1 431");
  EXPECT_EQ(first_line(head_of_answer(server.port, wire_fixture("handshake_api_key_c2s.bin"))),
            good);
  EXPECT_NO_THROW(WebSocketClient(server.url(), {.api_key = "not-a-secret"}));
}

TEST(Origin, of_a_browser_is_refused_unless_allowed) {
  TestServer server({.origins = {"http://panel.robot"}});
  for (const char* origin : {"http://evil.example", "null", ""})
    EXPECT_EQ(upgrade_answer(server.port, fmt::format("Origin: {}\r\n", origin)),
              "HTTP/1.1 403 Forbidden");
  EXPECT_EQ(upgrade_answer(server.port, "Origin: http://panel.robot\r\n"), kSwitching);
  EXPECT_EQ(server.network.counters().bad_origin, 3);
  TestServer any({.origins = {"*"}});
  EXPECT_EQ(upgrade_answer(any.port, "Origin: http://evil.example\r\n"), kSwitching);
}

// websocket-client for Python sends it; a page of a domain may have it by DNS rebinding.
TEST(Origin, of_the_servers_own_address_is_allowed_unless_a_domain_may_have_it) {
  TestServer server;
  const auto answer = [&](const std::string& host, const std::string& origin) {
    std::string request = RawSocket::handshake(fmt::format("Origin: {}\r\n", origin));
    request.replace(request.find("robot"), 5, host);
    return first_line(head_of_answer(server.port, request));
  };
  for (const char* host : {"127.0.0.1:8000", "[::1]:8000", "localhost:8000", "robot-brain"}) {
    EXPECT_EQ(answer(host, "https://" + std::string(host)), kSwitching) << host;
    EXPECT_EQ(answer(host, "http://other"), "HTTP/1.1 403 Forbidden") << host;
  }
  for (const char* host : {"evil.example:8000", "1.evil.example", "10.0.0.1.evil.example:80"})
    EXPECT_EQ(answer(host, "http://" + std::string(host)), "HTTP/1.1 403 Forbidden") << host;
}

TEST(Ports, that_cannot_be_had_say_what_to_do) {
  TestServer server;
  Network network;
  const auto refused_at = [&](const PortOptions& at, const std::string& why) {
    return refuses(Fault::network, why, [&] { network.listen({.at = at}, nullptr, nullptr); });
  };
  const std::string taken = "port " + std::to_string(server.port);
  EXPECT_TRUE(refused_at({.port = server.port},
                         taken + " is in use; stop the other server or give --port N"));
  EXPECT_TRUE(refused_at({.host = "0.0.0.0", .port = server.port, .flag = "--admin-port"},
                         taken + " is in use; stop the other server or give --admin-port N"));
  EXPECT_TRUE(refused_at({.host = "localhost", .port = server.port}, taken));
  for (const char* elsewhere : {"192.0.2.1", "2001:db8::1"})
    EXPECT_TRUE(refused_at({.host = elsewhere}, "no address of this machine"));
  for (const char* unknown :
       {"no-such-host.invalid", "300.1.1.1", "127.0.0.1:80", "a b", "notlocalhost", ".localhost"})
    EXPECT_TRUE(refused_at({.host = unknown}, "unknown to this machine"));
  int first_free = 0;  // 0 in some containers
  std::ifstream("/proc/sys/net/ipv4/ip_unprivileged_port_start") >> first_free;
  if (geteuid() != 0 && first_free > 80) {
    EXPECT_TRUE(refused_at({.port = 80}, "1024 or more"));
  }
  for (const char* fine :
       {"127.0.0.1", "0.0.0.0", "localhost", "LocalHost.", "a.robot.localhost", "*", ""})
    EXPECT_NO_THROW(network.listen({.at = {.host = fine}}, nullptr, nullptr)) << fine;
}

TEST(Ports, of_ipv6_serve_too) {
  WebSocketOptions options{.at = {.host = "::1"}};
  std::unique_ptr<TestServer> server;
  try {
    server = std::make_unique<TestServer>(options);
  } catch (const Error& e) {
    GTEST_SKIP() << "no IPv6 here: " << e.what();
  }
  WebSocketClient client("ws://[::1]:" + std::to_string(server->port) + "/", {});
  expect_echo(client);
  EXPECT_EQ(server->last_peer.address, "::1");
}

TEST(Ports, of_every_network_take_ipv4_and_name_its_addresses) {
  TestServer server({.at = {.host = "*"}});
  WebSocketClient client = server.client();
  expect_echo(client);
  EXPECT_EQ(server.last_peer.address, "127.0.0.1");
}

TEST(Ports, that_stop_listening_keep_what_is_open) {
  TestServer server;
  WebSocketClient client = server.client();
  server.network.post([&] { server.network.stop_listening(); });
  EXPECT_TRUE(wait_until([&] {
    try {
      WebSocketClient(server.url(), {.timeout_s = 1});
    } catch (const Error&) {
      return true;
    }
    return false;
  }));
  expect_echo(client);
}

TEST(Network, stops_with_everything_open) {
  const int before = open_files();
  {
    TestServer server;
    RawSocket waiting(server.port), talking = open_websocket(server.port);
    talking.send(frame(kBinary, "half", {.claims = 1000}));
    ASSERT_TRUE(wait_until([&] { return server.opens == 1; }));
    server.stop();
    EXPECT_EQ(server.closes, 1);
    waiting.until_end();
    EXPECT_TRUE(waiting.ended());
  }
  EXPECT_EQ(open_files(), before);
}

TEST(Network, calls_back_not_before_its_time_and_on_signals) {
  Network network;
  std::vector<int> signals;
  const double begin = now_s();
  network.on_signals({SIGUSR1}, [&](int signal) {
    signals.push_back(signal);
    if (signals.size() == 2) network.stop();
  });
  network.after(0.2, [] { raise(SIGUSR1); });
  network.after(0.4, [] { raise(SIGUSR1); });
  network.run();
  EXPECT_EQ(signals, std::vector<int>(2, SIGUSR1));
  EXPECT_GE(now_s() - begin, 0.4);
}

TEST(Client, says_why_it_cannot_connect) {
  const auto refused_by = [](const std::string& url, const std::string& why) {
    return refuses(Fault::network, why, [&] { WebSocketClient(url, {}); });
  };
  TestServer server({.api_key = "k"});
  EXPECT_TRUE(refused_by(server.url(), server.url() + " answered 401 Unauthorized: An API key is"));
  server.stop();
  EXPECT_TRUE(refused_by("127.0.0.1:1", "Connection refused; is the server running?"));
  EXPECT_TRUE(refused_by("no-such-host.invalid", "unknown"));
  EXPECT_TRUE(refused_by("wss://robot", "only ws://"));
  for (const char* wrong : {"", "ws://", "host:", "host:abc", "[::1"})
    EXPECT_TRUE(refused_by(wrong, "'")) << wrong;
}

// Also of a server that listens at one of the two addresses only.
TEST(Client, finds_localhost_without_a_resolver) {
  for (const char* host : {"localhost", "LOCALHOST", "127.0.0.1"}) {
    TestServer server({.at = {.host = host}});
    for (const char* name : {"localhost", "Localhost.", "a.robot.localhost", "127.0.0.1"}) {
      WebSocketClient client(fmt::format("ws://{}:{}/", name, server.port), {});
      expect_echo(client);
    }
  }
}

TEST(Client, says_how_the_connection_ended) {
  TestServer server({}, [](Network& network, ConnectionId id, Bytes message) {
    if (!message.empty()) network.close(id, CloseCode::internal_error, "the policy hangs");
    return true;
  });
  const std::string url = "ws://localhost:" + std::to_string(server.port) + "/path?query";
  WebSocketClient client(url, {.timeout_s = 0.3}), impatient(url, {.timeout_s = 0.3});
  client.send(Bytes{1});
  EXPECT_TRUE(
      refuses(Fault::network, "closed with 1011: the policy hangs", [&] { client.receive(); }));
  impatient.send(Bytes{});
  EXPECT_TRUE(refuses(Fault::network, "no answer within 0.3 s", [&] { impatient.receive(); }));
}

}  // namespace
}  // namespace tendon
