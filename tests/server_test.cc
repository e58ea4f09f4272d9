// labels: server
// The server as its clients see it: in this process, with a stub of a policy.
#include "serve/server.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "refusals.h"
#include "stub_server.h"

namespace tendon {
namespace {

using msgpack::integer;
using msgpack::number;
using msgpack::text;

nlohmann::json status_of(const StubServer& server) {
  const std::string reply = http_get(server.admin_port(), "/status");
  return nlohmann::json::parse(reply.substr(reply.find("\r\n\r\n") + 4));
}

double timing(const WebSocketClient::Message& reply, const std::string& key) {
  const msgpack::Value message = msgpack::decode(reply.bytes);
  const msgpack::Value* value = message.find("server_timing")->find(key);
  return value ? msgpack::plain_number(*value).value() : std::nan("");
}

TEST(Server, greets_answers_and_counts_replies) {
  StubServer server;
  WebSocketClient client(server.url(), {});
  EXPECT_EQ(msgpack::decode(client.receive().bytes).find("model")->text, "stub");
  const auto first = ask(client, stub_request());
  EXPECT_EQ(actions(first)[1], 0.5);
  EXPECT_EQ(actions(first)[2], 9);
  EXPECT_TRUE(std::isnan(timing(first, "prev_total_ms")));
  EXPECT_EQ(timing(first, "reply_id"), 0);
  const auto second = ask(client, stub_request());
  EXPECT_GT(timing(second, "prev_total_ms"), 0);
  EXPECT_EQ(timing(second, "reply_id"), 1);
}

TEST(Server, closes_after_errors_only_where_asked_to) {
  StubServer server({.answers = {.strict_openpi = true}});
  WebSocketClient client = server.client();
  text_of(ask(client, "\xc1"));
  EXPECT_TRUE(refuses(Fault::network, "1011", [&] { client.receive(); }));
}

TEST(Server, gives_requests_a_seed_and_takes_theirs) {
  StubServer server({.answers = {.seed = 5, .fresh_noise = true}});
  WebSocketClient client = server.client();
  EXPECT_EQ(actions(ask(client, stub_request()))[0], 5);
  EXPECT_EQ(actions(ask(client, stub_request()))[0], 6);
  const auto reply =
      ask(client, stub_request(4, 0.5, {{"seed", integer(77)}, {"request_id", text("turn 3")}}));
  EXPECT_EQ(actions(reply)[0], 77);
  EXPECT_EQ(msgpack::decode(reply.bytes).find("request_id")->text, "turn 3");
}

TEST(Server, refuses_stale_observations_and_missed_deadlines) {
  StubServer server({.answers = {.observation_age_ms_max = 2000}});
  WebSocketClient client = server.client();
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const auto seen = [&](double at) {
    return ask(client, stub_request(4, 0.5, {{"observed_at", number(at)}}));
  };
  const auto fresh = seen(now);
  ASSERT_FALSE(fresh.text);
  EXPECT_LT(std::abs(timing(fresh, "observation_age_ms")), 1900);
  EXPECT_TRUE(says(text_of(seen(now - 5)), "stale by"));

  // Another client's inference makes this one wait.
  server.policy.seconds = 0.5;
  WebSocketClient other = server.client();
  other.send(bytes_of(stub_request()));
  while (server.policy.running == 0) std::this_thread::yield();
  const auto late = ask(client, stub_request(4, 0.5, {{"deadline_ms", number(20)}}));
  EXPECT_TRUE(says(text_of(late), "deadline_ms is 20"));
  other.receive();
  EXPECT_EQ(status_of(server)["requests"]["deadline_missed"], 1);
  EXPECT_EQ(status_of(server)["requests"]["stale"], 1);
}

TEST(Server, never_sends_bad_actions_and_is_not_ready_after_several) {
  StubServer server({.answers = {.guard_factor = 2, .failures_max = 2}});
  WebSocketClient client = server.client();
  server.policy.action = 1.5;  // dimension 3 may be -1 to 1
  EXPECT_TRUE(says(text_of(ask(client, stub_request())), "action 3 of row 0 is 1.5"));
  EXPECT_EQ(http_status(server.admin_port(), "/readyz"), 200);
  server.policy.action = 0.25;
  EXPECT_FALSE(ask(client, stub_request()).text);  // not in a row
  server.policy.action = 1.5;
  EXPECT_TRUE(ask(client, stub_request()).text);
  EXPECT_EQ(http_status(server.admin_port(), "/readyz"), 200);
  EXPECT_TRUE(ask(client, stub_request()).text);
  EXPECT_EQ(http_status(server.admin_port(), "/readyz"), 503);
  server.policy.action = 0.25;
  EXPECT_FALSE(ask(client, stub_request()).text);
  EXPECT_EQ(http_status(server.admin_port(), "/readyz"), 200);
  server.policy.not_finite = true;
  EXPECT_TRUE(says(text_of(ask(client, stub_request())), "is nan"));
  EXPECT_THROW(client.receive(), Error);  // an internal fault closes with 1011
  EXPECT_EQ(status_of(server)["requests"]["guarded"], 3);
  EXPECT_EQ(status_of(server)["requests"]["failed"], 1);
}

TEST(Server, is_not_ready_after_one_failure_of_its_device) {
  StubServer server;
  WebSocketClient client = server.client();
  server.policy.device_lost = true;
  EXPECT_TRUE(says(text_of(ask(client, stub_request())), "the policy failed"));
  EXPECT_THROW(client.receive(), Error);
  EXPECT_EQ(http_status(server.admin_port(), "/readyz"), 503);
}

TEST(Server, answers_every_pipelined_request_in_order) {
  StubServer server;
  server.policy.seconds = 0.01;
  WebSocketClient client = server.client();
  for (int i = 0; i < 20; ++i) client.send(bytes_of(stub_request(4, i)));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(actions(client.receive())[1], i);
}

TEST(Server, skips_older_requests_of_a_client_that_wants_the_latest) {
  StubServer server;
  server.policy.seconds = 0.5;
  WebSocketClient client = server.client("/?queue=latest");
  client.send(bytes_of(stub_request(4, 0)));
  while (server.policy.running == 0) std::this_thread::yield();
  for (int i = 1; i < 10; ++i) client.send(bytes_of(stub_request(4, i)));
  EXPECT_EQ(actions(client.receive())[1], 0);
  EXPECT_EQ(actions(client.receive())[1], 9);
  EXPECT_EQ(status_of(server)["requests"]["skipped"], 8);
}

TEST(Server, serves_eight_clients_in_turn_and_stays_healthy) {
  StubServer server;
  server.policy.seconds = 0.05;
  std::atomic<bool> stop = false;
  std::vector<int> served(8);
  std::vector<std::thread> threads;
  for (int& count : served)
    threads.emplace_back([&] {
      WebSocketClient client = server.client();
      while (!stop) {
        ask(client, stub_request(224));
        ++count;
      }
    });
  for (const double end = now_s() + 4; now_s() < end;) {
    ASSERT_EQ(http_status(server.port(), "/healthz"), 200);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  const auto [least, most] = std::ranges::minmax(served);
  // A client that the machine did not let run in time misses its turn.
  EXPECT_LE(most, least * 1.1 + 2) << "most " << most << ", least " << least;
}

TEST(Server, tells_what_it_adds_to_an_inference) {
  StubServer server;
  server.policy.seconds = 0.005;
  WebSocketClient client = server.client();
  const std::string request = stub_request(224);
  std::vector<double> added, added_by_loopback;  // the latter as the client sees it
  for (int i = 0; i < 300; ++i) {
    const auto begin = Clock::now();
    const auto reply = ask(client, request);
    added_by_loopback.push_back(ms_between(begin, Clock::now()) - timing(reply, "infer_ms"));
    added.push_back(timing(reply, "queue_ms") + timing(reply, "decode_ms"));
  }
  // What the server says of itself is part of what its client waits.
  EXPECT_GT(percentile_of(added, 0.5), 0);
  EXPECT_LT(percentile_of(added, 0.5), percentile_of(added_by_loopback, 0.5));
}

// With so many actions of the previous chunk executed; the delay is left out where it is negative.
std::string rtc_request(int consumed, int delay) {
  const auto left_out = [](msgpack::Writer& to) { to.nil(); };
  return stub_request(4, 0.5,
                      {{"actions_consumed", integer(consumed)},
                       {"inference_delay", delay < 0 ? left_out : integer(delay)},
                       {"execution_horizon", integer(6)}});
}

TEST(Server, guides_by_the_rest_of_the_previous_chunk) {
  StubServer server({.answers = {.rtc = true, .control_hz = 10}});
  WebSocketClient client = server.client();
  const auto ask_rtc = [&](int consumed, int delay) {
    return ask(client, rtc_request(consumed, delay));
  };
  const auto last = [&] {
    const std::lock_guard lock(server.policy.mutex);
    return server.policy.last.previous;
  };
  server.policy.seconds = 0.9;  // the first inference is no sample of latency
  ASSERT_FALSE(ask_rtc(0, 1).text);
  server.policy.seconds = 0;
  EXPECT_FALSE(last()) << "there is no previous chunk yet";
  server.policy.action = 0.75;
  EXPECT_EQ(timing(ask_rtc(7, 2), "inference_delay"), 2);
  ASSERT_TRUE(last());
  EXPECT_EQ(last()->delay, 2);
  EXPECT_EQ(last()->execution_horizon, 6);
  // Three rows are left; rows four to six repeat the last action, they are not zero.
  EXPECT_EQ(last()->rows, 6);
  EXPECT_EQ(last()->actions, std::vector<double>(42, 0.25));
  EXPECT_TRUE(says(text_of(ask_rtc(7, 4)), "only 3 actions"));
  ask_rtc(10, 1);
  EXPECT_FALSE(last()) << "all of it was executed";
  // The delay that nobody gave comes from latencies, the first of which is no sample.
  server.policy.seconds = 0.6;
  ask_rtc(0, -1);
  EXPECT_LT(last()->delay, 6);
  ask_rtc(0, -1);
  EXPECT_GE(last()->delay, 6);  // 0.6 s at 10 Hz
}

TEST(Server, estimates_the_delay_of_a_robot_that_acts_once_in_two_seconds) {
  StubServer server({.answers = {.rtc = true, .control_hz = 0.5}});
  WebSocketClient client = server.client();
  ask(client, rtc_request(0, -1));  // there is no previous chunk yet
  ask(client, rtc_request(0, -1));  // and here no sample of latency
  // Any part of an action counts as one.
  EXPECT_EQ(timing(ask(client, rtc_request(0, -1)), "inference_delay"), 1);
}

TEST(Server, is_up_for_operators_before_it_is_for_robots) {
  std::promise<void> loaded, warmed;
  std::atomic<uint16_t> port = 0, admin = 0;
  ServeOptions options{.policy = {.at = {.port = 0}}, .admin = {.port = 0}};
  options.ready = [&](uint16_t p, uint16_t) { port = p; };
  options.admin_ready = [&](uint16_t a) { admin = a; };
  std::thread thread([&] {
    serve(
        [&](const Opening& opening) {
          opening.loading({.plan = {.weights = 200}, .bytes = 90, .seconds = 9});
          loaded.get_future().wait();
          opening.warming();
          warmed.get_future().wait();
          return ServedPolicy{stub_card(), {}};
        },
        options);
  });
  while (admin == 0) std::this_thread::yield();
  const auto not_ready = [&](const char* why) {
    return wait_until([&] { return bool(says(http_get(admin, "/readyz"), {"503", why})); });
  };
  EXPECT_TRUE(not_ready("loading weights: 45 %"));
  EXPECT_EQ(http_status(admin, "/healthz"), 200);
  EXPECT_EQ(port, 0);
  loaded.set_value();
  EXPECT_TRUE(not_ready("warming: first run"));
  EXPECT_EQ(port, 0);
  warmed.set_value();
  EXPECT_TRUE(wait_until([&] { return port != 0; }));
  EXPECT_EQ(http_status(admin, "/readyz"), 200);
  EXPECT_EQ(http_status(port, "/healthz"), 200);
  EXPECT_TRUE(says(http_get(admin, "/"), "<html"));
  EXPECT_TRUE(says(http_get(admin, "/metrics"), "tendon_ready 1"));
  ::kill(::getpid(), SIGTERM);
  thread.join();
}

TEST(Server, that_is_stopped_answers_the_running_request_and_says_goodbye) {
  StubServer server;
  std::vector<WebSocketClient> clients;
  for (int i = 0; i < 8; ++i) clients.push_back(server.client());
  server.policy.seconds = 0.5;
  clients[0].send(bytes_of(stub_request(4, 3)));
  while (server.policy.running == 0) std::this_thread::yield();
  std::thread stopping([&] { EXPECT_EQ(server.stop(), 0); });
  EXPECT_EQ(actions(clients[0].receive())[1], 3);
  for (WebSocketClient& client : clients)
    EXPECT_TRUE(refuses(Fault::network, "1001", [&] { client.receive(); }));
  stopping.join();
}

// Runs in a child process of its own.
void serve_and_hang(double inference_s_max, bool two_signals) {
  ServeOptions options{.inference_s_max = inference_s_max};
  options.log = [](const std::string& line) { fmt::print(stderr, "{}\n", line); };
  StubServer server(options);
  server.policy.seconds = 30;
  WebSocketClient client = server.client();
  client.send(bytes_of(stub_request()));
  if (two_signals) {
    while (server.policy.running == 0) std::this_thread::yield();
    ::kill(::getpid(), SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    ::kill(::getpid(), SIGTERM);
  }
  try {
    const auto text = client.receive();
    fmt::print(stderr, "text: {}\n", std::string(text.bytes.begin(), text.bytes.end()));
    client.receive();
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
  }
  std::this_thread::sleep_for(std::chrono::seconds(20));
}

TEST(ServerDeathTest, a_hanging_inference_ends_in_an_honest_exit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(serve_and_hang(0.5, false), testing::ExitedWithCode(70), "exit code 70");
}

TEST(ServerDeathTest, a_signal_while_loading_ends_it_at_once) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto stop_while_loading = [] {
    ServeOptions options{.policy = {.at = {.port = 0}}, .admin = {.port = 0}};
    options.admin_ready = [](uint16_t) { ::kill(::getpid(), SIGTERM); };
    serve(
        [](const auto&) {
          std::this_thread::sleep_for(std::chrono::hours(1));
          return ServedPolicy{};
        },
        options);
  };
  EXPECT_EXIT(stop_while_loading(), testing::ExitedWithCode(0), "");
}

TEST(ServerDeathTest, a_second_signal_ends_it_at_once) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(serve_and_hang(60, true), testing::ExitedWithCode(128 + SIGTERM), "");
}

// Bytes that are allocated. AddressSanitizer has an allocator of its own: then nothing.
int64_t heap_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

// Equal answers to equal requests, on a new connection for every hundred: heap and files stay as
// they were after the first `warm` connections. A connection holds about 64 KiB and ends a while
// after its client has gone, so the heap is looked at without any.
void soak(int connections, int warm, int64_t growth_bytes_max) {
  constexpr int kRequests = 100;
  StubServer server;
  const int files = open_files();
  const std::string request = stub_request(64);
  const auto timed = static_cast<size_t>(warm * kRequests);
  std::vector<double> first, early_ms(timed), late_ms(timed);  // now: they must not grow later
  int64_t early = 0;
  for (int connection = 0; connection < connections; ++connection) {
    if (connection == warm) {
      ASSERT_TRUE(wait_until([&] { return open_files() <= files; }));
      early = heap_bytes();
    }
    WebSocketClient client = server.client();
    for (int i = 0; i < kRequests; ++i) {
      const double begin = now_s();
      const std::vector<double> now = actions(ask(client, request));
      const double ms = (now_s() - begin) * 1e3;
      if (first.empty()) first = now;
      ASSERT_EQ(now, first) << connection;
      const auto at = static_cast<size_t>(connection % warm * kRequests + i);
      if (connection < warm) early_ms[at] = ms;
      if (connection >= connections - warm) late_ms[at] = ms;
    }
    client.close();
  }
  EXPECT_TRUE(wait_until([&] { return open_files() <= files; }));
  EXPECT_TRUE(wait_until([&] { return heap_bytes() <= early + growth_bytes_max; }))
      << heap_bytes() << " bytes, early " << early;
  const int64_t grown = heap_bytes() - early;
  fmt::print("row 25: {} requests, {} connections, {} KiB grown, p99 {:.3f} ms, then {:.3f} ms\n",
             connections * kRequests, connections, grown / 1024, percentile_of(early_ms, 0.99),
             percentile_of(late_ms, 0.99));
}

// The page's history keeps four bytes per request, in vectors that may be half empty, of at most
// 4096 requests in each of its 60 slices; one block per request would be 250 KiB.
TEST(Soak, of_requests_ten_thousand_times_leaves_nothing_behind) { soak(100, 30, 128 << 10); }
TEST(Soak, slow_of_a_million_requests_leaves_nothing_behind) {
  soak(10'000, 1000, (128 << 10) + 2 * 60 * 4096 * static_cast<int64_t>(sizeof(float)));
}

}  // namespace
}  // namespace tendon
