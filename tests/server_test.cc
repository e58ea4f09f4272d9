// labels: server
// The server as its clients see it: in this process, with a stub of a policy.
#include "serve/server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "stub_server.h"
#include "tensor/check.h"
#include "tensor/percentile.h"

namespace tendon {
namespace {

using msgpack::Value;
using msgpack::Writer;

nlohmann::json status_of(const StubServer& server) {
  const std::string reply = http_get(server.admin_port(), "/status");
  return nlohmann::json::parse(reply.substr(reply.find("\r\n\r\n") + 4));
}

double timing(const WebSocketClient::Message& reply, const std::string& key) {
  const Value message = msgpack::decode(reply.bytes);
  const Value* value = message.find("server_timing")->find(key);
  if (!value) return std::nan("");
  return value->kind == Value::Kind::integer ? static_cast<double>(value->integer) : value->number;
}

std::vector<double> actions(const WebSocketClient::Message& reply) {
  const Value message = msgpack::decode(reply.bytes);
  const msgpack::Array& array = message.find("actions")->array;
  std::vector<double> out;
  for (int64_t i = 0; i < array.size(); ++i) out.push_back(array.number(i));
  return out;
}

double percentile(std::vector<double> values, double part) {
  std::ranges::sort(values);
  return tendon::percentile(std::span<const double>(values), part);
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

TEST(Server, answers_a_bad_request_with_text_and_keeps_the_connection) {
  StubServer server;
  WebSocketClient client = server.client();
  std::string empty_map;
  Writer(empty_map).map(0);
  EXPECT_NE(text_of(ask(client, empty_map)).find("'observation/"), std::string::npos);
  EXPECT_NE(text_of(ask(client, "\xc1")).find("byte"), std::string::npos);
  EXPECT_FALSE(ask(client, stub_request()).text);
  EXPECT_EQ(status_of(server)["requests"]["refused"], 2);
}

TEST(Server, closes_after_errors_only_where_asked_to) {
  StubServer server({.answers = {.strict_openpi = true}});
  WebSocketClient client = server.client();
  text_of(ask(client, "\xc1"));
  try {
    client.receive();
    FAIL() << "still open";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("1011"), std::string::npos) << error.what();
  }
}

TEST(Server, gives_requests_a_seed_and_takes_theirs) {
  StubServer server({.answers = {.seed = 5, .fresh_noise = true}});
  WebSocketClient client = server.client();
  EXPECT_EQ(actions(ask(client, stub_request()))[0], 5);
  EXPECT_EQ(actions(ask(client, stub_request()))[0], 6);
  const auto own = [](Writer& to) {
    to.text("seed");
    to.integer(77);
    to.text("request_id");
    to.text("turn 3");
  };
  const auto reply = ask(client, stub_request(4, 0.5, own, 2));
  EXPECT_EQ(actions(reply)[0], 77);
  EXPECT_EQ(msgpack::decode(reply.bytes).find("request_id")->text, "turn 3");
}

TEST(Server, refuses_stale_observations_and_missed_deadlines) {
  StubServer server({.answers = {.observation_age_ms_max = 2000}});
  WebSocketClient client = server.client();
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const auto seen = [&](double at) {
    return ask(client, stub_request(
                           4, 0.5,
                           [at](Writer& to) {
                             to.text("observed_at");
                             to.number(at);
                           },
                           1));
  };
  const auto fresh = seen(now);
  ASSERT_FALSE(fresh.text);
  EXPECT_LT(std::abs(timing(fresh, "observation_age_ms")), 1900);
  EXPECT_NE(text_of(seen(now - 5)).find("stale by"), std::string::npos);

  // Another client's inference makes this one wait.
  server.policy.seconds = 0.5;
  WebSocketClient other = server.client();
  other.send(bytes_of(stub_request()));
  while (server.policy.running == 0) std::this_thread::yield();
  const auto late = ask(client, stub_request(
                                    4, 0.5,
                                    [](Writer& to) {
                                      to.text("deadline_ms");
                                      to.number(20);
                                    },
                                    1));
  EXPECT_NE(text_of(late).find("deadline_ms is 20"), std::string::npos);
  other.receive();
  EXPECT_EQ(status_of(server)["requests"]["deadline_missed"], 1);
  EXPECT_EQ(status_of(server)["requests"]["stale"], 1);
}

TEST(Server, never_sends_bad_actions_and_is_not_ready_after_several) {
  StubServer server({.answers = {.guard_factor = 2, .failures_max = 2}});
  WebSocketClient client = server.client();
  server.policy.action = 1.5;  // dimension 3 may be -1 to 1
  EXPECT_NE(text_of(ask(client, stub_request())).find("action 3 of row 0 is 1.5"),
            std::string::npos);
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
  EXPECT_NE(text_of(ask(client, stub_request())).find("is nan"), std::string::npos);
  EXPECT_THROW(client.receive(), Error);  // an internal fault closes with 1011
  EXPECT_EQ(status_of(server)["requests"]["guarded"], 3);
  EXPECT_EQ(status_of(server)["requests"]["failed"], 1);
}

TEST(Server, is_not_ready_after_one_failure_of_its_device) {
  StubServer server;
  WebSocketClient client = server.client();
  server.policy.device_lost = true;
  EXPECT_NE(text_of(ask(client, stub_request())).find("the policy failed"), std::string::npos);
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
  std::vector<double> health_ms;
  const auto end = Clock::now() + std::chrono::seconds(4);
  while (Clock::now() < end) {
    const auto begin = Clock::now();
    ASSERT_EQ(http_status(server.port(), "/healthz"), 200);
    health_ms.push_back(ms_between(begin, Clock::now()));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  const auto [least, most] = std::ranges::minmax(served);
  // A client that the machine did not let run in time misses its turn.
  EXPECT_LE(most, least * 1.1 + 2) << "most " << most << ", least " << least;
  RecordProperty("most_by_least", std::to_string(static_cast<double>(most) / least));
  RecordProperty("healthz_p99_ms", std::to_string(percentile(health_ms, 0.99)));
}

TEST(Server, is_healthy_while_it_infers) {
  StubServer server;
  WebSocketClient client = server.client();
  server.policy.hold = true;
  client.send(bytes_of(stub_request(4)));
  while (server.policy.running == 0) std::this_thread::yield();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(http_status(server.port(), "/healthz"), 200);
  EXPECT_EQ(server.policy.running, 1);
  server.policy.hold = false;
  EXPECT_FALSE(client.receive().text);
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
  for (const double part : {0.5, 0.99}) {
    const std::string p = fmt::format("_p{}_ms", 100 * part);
    RecordProperty("added" + p, std::to_string(percentile(added, part)));
    RecordProperty("added_by_loopback" + p, std::to_string(percentile(added_by_loopback, part)));
  }
  // What the server says of itself is part of what its client waits.
  EXPECT_GT(percentile(added, 0.5), 0);
  EXPECT_LT(percentile(added, 0.5), percentile(added_by_loopback, 0.5));
}

// With so many actions of the previous chunk executed; the delay is left out where it is negative.
std::string rtc_request(int consumed, int delay) {
  const auto more = [=](Writer& to) {
    to.text("actions_consumed");
    to.integer(consumed);
    to.text("inference_delay");
    delay < 0 ? to.nil() : to.integer(delay);
    to.text("execution_horizon");
    to.integer(6);
  };
  return stub_request(4, 0.5, more, 3);
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
  EXPECT_NE(text_of(ask_rtc(7, 4)).find("only 3 actions"), std::string::npos);
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
  std::string readyz;
  for (int i = 0; i < 12'000 && readyz.find("45 %") == std::string::npos; ++i) {
    readyz = http_get(admin, "/readyz");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_NE(readyz.find("503"), std::string::npos);
  EXPECT_NE(readyz.find("loading weights: 45 %"), std::string::npos) << readyz;
  EXPECT_EQ(http_status(admin, "/healthz"), 200);
  EXPECT_EQ(port, 0);
  loaded.set_value();
  for (int i = 0; i < 12'000 && readyz.find("warming") == std::string::npos; ++i) {
    readyz = http_get(admin, "/readyz");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_NE(readyz.find("503"), std::string::npos);
  EXPECT_NE(readyz.find("warming: first run"), std::string::npos) << readyz;
  EXPECT_EQ(port, 0);
  warmed.set_value();
  for (int i = 0; i < 12'000 && port == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(http_status(admin, "/readyz"), 200);
  EXPECT_EQ(http_status(port, "/healthz"), 200);
  EXPECT_NE(http_get(admin, "/").find("<html"), std::string::npos);
  EXPECT_NE(http_get(admin, "/metrics").find("tendon_ready 1"), std::string::npos);
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
  for (WebSocketClient& client : clients) {
    try {
      client.receive();
      ADD_FAILURE() << "still open";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("1001"), std::string::npos) << error.what();
    }
  }
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

// Bytes that are allocated; under AddressSanitizer, which has an allocator of its own, nothing.
int64_t heap_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

int64_t open_files() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

// A connection holds about 64 KiB, and ends a while after its client has gone: what is compared is
// the heap without any connection.
TEST(Server, gives_equal_bytes_for_equal_input_ten_thousand_times_without_growing) {
  StubServer server;
  const int64_t files = open_files();
  const std::string request = stub_request(64);
  const auto first = [&] {
    WebSocketClient client = server.client();
    return actions(ask(client, request));
  }();
  const auto becomes = [](const auto& true_of) {
    for (int i = 0; i < 6000 && !true_of(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return true_of();
  };
  const auto without_connections = [&] { return open_files() <= files; };
  // The page's history keeps four bytes per request; a block per request would be 250 KiB.
  constexpr int64_t kGrowthMax = 128 << 10;
  int64_t early = 0;
  for (int connection = 0; connection < 100; ++connection) {
    if (connection == 20) {
      ASSERT_TRUE(becomes(without_connections));
      early = heap_bytes();
    }
    WebSocketClient client = server.client();
    for (int i = 0; i < 100; ++i) ASSERT_EQ(actions(ask(client, request)), first);
    client.close();
  }
  EXPECT_TRUE(becomes(without_connections));
  EXPECT_TRUE(becomes([&] { return heap_bytes() <= early + kGrowthMax; }))
      << heap_bytes() << " bytes, after a fifth of the requests " << early;
  fmt::print("row 25: heap of {} KiB early, {} late\n", early >> 10, heap_bytes() >> 10);
}

TEST(Server, survives_sixteen_clients_that_leave_at_random) {
  StubServer server;
  server.policy.seconds = 0.001;
  const double seconds = 2;
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 16; ++seed)
    threads.emplace_back([&server, seed, seconds] {
      unsigned state = seed;
      const auto roll = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
      const auto end = Clock::now() + std::chrono::duration<double>(seconds);
      while (Clock::now() < end) {
        try {
          WebSocketClient client = server.client();
          while (roll() % 10 != 0) ask(client, stub_request(16));
          if (roll() % 2 == 0) client.send(bytes_of(stub_request(16)));  // and gone
          if (roll() % 2 == 0) client.close();
        } catch (const Error& error) {
          ADD_FAILURE() << error.what();
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  WebSocketClient client = server.client();
  EXPECT_FALSE(ask(client, stub_request()).text);
}

}  // namespace
}  // namespace tendon
