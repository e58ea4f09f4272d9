// labels: hostile
// Every allocation of reading a request, answering it and serving it fails once, and again and
// again: an error reply or a closed connection, never a crash, a leak or a server that is half
// dead.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "counted_new.h"
#include "serve/request_handler.h"
#include "stub_server.h"

namespace tendon {
namespace {

using namespace heap;

// What the inference thread does with a request, with a failure in every place. Returns what
// leaked.
int64_t answer_without_memory(const char* name, const std::string& request, bool every) {
  int64_t answered = 0, refused = 0;
  const FailedCalls calls = with_every_failure([&](int64_t n) {
    Metrics metrics;
    StubPolicy stub;
    const auto infer = [&](std::span<const BatchRow> rows) { return stub_batch(stub, rows); };
    RequestHandler handler({stub_card(), infer}, {.rtc = true, .failures_max = 1}, metrics,
                           [](const std::string& line) { EXPECT_NE(line, ""); });
    const QueuedRequest queued{std::make_shared<Session>(), Bytes(request.begin(), request.end()),
                               Clock::now()};
    fail_from_now_on(n, every);
    may_fail = true;
    const Answer answer = handler.answer(queued);
    may_fail = false;
    fail_no_more();
    ++(answer.text ? refused : answered);
    EXPECT_NE(answer.message, "") << n;
  });
  EXPECT_GT(refused, 0) << name;
  fmt::print(
      "row 10: {}, {} n-th allocation, n up to {}: {} answered all the same, {} errors, {} leaks\n",
      name, every ? "every" : "the", calls.count, answered, refused, calls.leaked);
  return calls.leaked;
}

TEST(Memory, that_is_missing_while_a_request_is_answered_is_an_error_reply) {
  const std::string wrong =
      stub_request(4, 0.5, {{"observation/imgae", [](msgpack::Writer& to) { to.nil(); }}});
  std::string no_map;
  msgpack::Writer(no_map).nil();
  answer_without_memory("what stays for good", stub_request(), true);
  for (const auto& [name, request] : {std::pair("a request", stub_request()),
                                      {"one with an unknown key", wrong},
                                      {"no request", no_map}})
    for (const bool every : {false, true})
      EXPECT_EQ(answer_without_memory(name, request, every), 0) << name;
}

enum class Part { network, inference };

// One life of a server, of which a thread runs out of memory.
struct Life {
  bool replied = false, refused = false, closed = false;  // the first client
  bool served_next = false;                               // a second client, or else:
  bool ended = false;                                     // by itself, out of memory
};

Life live(Part part, const std::string& request, int64_t n, bool every) {
  const auto fails_from_here = [] { may_fail = true; };
  const auto hook = [&](Part of) { return of == part ? StubServer::Hook(fails_from_here) : [] {}; };
  StubServer server({}, hook(Part::network), hook(Part::inference));
  Life life;
  fail_from_now_on(n, every);
  try {
    WebSocketClient client = server.client("/", 3);
    const auto reply = ask(client, request);
    (reply.text ? life.refused : life.replied) = true;
  } catch (const Error& e) {
    life.closed = true;
    EXPECT_EQ(std::string(e.what()).find("no answer"), std::string::npos) << n << e.what();
  }
  fail_no_more();
  const auto ended = [&] { return server.code() != StubServer::kServing; };
  try {
    WebSocketClient client = server.client("/", 3);
    life.served_next = !ask(client, request).text;
  } catch (const Error&) {
    EXPECT_TRUE(wait_until(ended)) << "half dead after " << n;
  }
  if (life.served_next) ::kill(::getpid(), SIGTERM);
  EXPECT_TRUE(wait_until(ended)) << "does not stop after " << n;
  life.ended = server.stop() == StubServer::kOutOfMemory;
  return life;
}

void run_out_of_memory(Part part, bool every) {
  const std::string request = stub_request(64);
  live(part, request, int64_t{1} << 40, false);  // what stays for good
  int64_t replies = 0, errors = 0, closes = 0, ends = 0;
  const FailedCalls lives = with_every_failure([&](int64_t n) {
    const Life life = live(part, request, n, every);
    EXPECT_TRUE(life.served_next != life.ended) << n;
    replies += life.replied;
    errors += life.refused;
    closes += life.closed;
    ends += life.ended;
  });
  EXPECT_EQ(lives.leaked, 0);
  fmt::print(
      "row 10: {} thread, {} n-th allocation, n up to {}: {} replies, {} errors, {} closed "
      "connections, {} orderly ends\n",
      part == Part::network ? "network" : "inference", every ? "every" : "the", lives.count,
      replies, errors, closes, ends);
}

TEST(Memory, that_is_missing_on_the_inference_thread_ends_in_a_reply_or_an_orderly_end) {
  run_out_of_memory(Part::inference, false);
  run_out_of_memory(Part::inference, true);
}

TEST(Memory, that_is_missing_on_the_network_thread_ends_in_a_reply_or_an_orderly_end) {
  run_out_of_memory(Part::network, false);
  run_out_of_memory(Part::network, true);
}

}  // namespace
}  // namespace tendon
