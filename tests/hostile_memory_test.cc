// labels: hostile
// Every allocation of reading a request, answering it and serving it fails once, and again and
// again: an error reply or a closed connection, never a crash, a leak or a server that is half
// dead.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <optional>

#include "network_peers.h"
#include "serve/request_handler.h"
#include "stub_server.h"

namespace {
std::atomic<int64_t> blocks_held{0};
std::atomic<bool> failing{false};
std::atomic<int64_t> blocks_until_failure{-1};  // below 0: never again
std::atomic<int64_t> blocks_between{0};         // two failures; 0: only one fails
std::atomic<int64_t> failures{0};
thread_local bool may_fail = false;

void* counted(size_t bytes) {
  if (may_fail && failing && blocks_until_failure >= 0 && blocks_until_failure-- == 0) {
    ++failures;
    if (blocks_between > 0) blocks_until_failure = blocks_between - 1;
    throw std::bad_alloc();
  }
  void* block = std::malloc(bytes);
  if (!block) throw std::bad_alloc();
  ++blocks_held;
  return block;
}

void release(void* block) {
  if (block) --blocks_held;
  std::free(block);
}
}  // namespace

// Never inlined: gcc takes the halves of an inlined pair for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) { return counted(bytes); }
[[gnu::noinline]] void* operator new[](size_t bytes) { return counted(bytes); }
[[gnu::noinline]] void operator delete(void* p) noexcept { release(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { release(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { release(p); }
[[gnu::noinline]] void operator delete[](void* p, size_t) noexcept { release(p); }

namespace tendon {
namespace {

constexpr int64_t kFailuresMax = 2000;

// Lets allocation n, from 1 on, of threads that may fail fail; or every n-th.
void fail_from_now_on(int64_t n, bool every) {
  failures = 0;
  blocks_between = every ? n : 0;
  blocks_until_failure = n - 1;
  failing = true;
}
// How many failed.
int64_t fail_no_more() {
  failing = false;
  return failures;
}

struct Tally {
  int64_t answered = 0, refused = 0, leaked = 0;
  std::string text() const {
    return fmt::format("{} answered all the same, {} errors, {} leaks", answered, refused, leaked);
  }
};

// What the inference thread does with a request, with a failure in every place.
Tally answer_without_memory(const std::string& request, bool every, int64_t& n) {
  Tally tally;
  for (n = 1; n <= kFailuresMax; ++n) {
    const int64_t before = blocks_held;
    int64_t failed = 0;
    {
      Metrics metrics;
      StubPolicy stub;
      const auto infer = [&](const Observation& seen, const InferOptions& options) {
        return stub_actions(stub, seen, options);
      };
      RequestHandler handler({stub_card(), infer}, {.rtc = true, .failures_max = 1}, metrics,
                             [](const std::string& line) { EXPECT_NE(line, ""); });
      const QueuedRequest queued{std::make_shared<Session>(), Bytes(request.begin(), request.end()),
                                 Clock::now()};
      fail_from_now_on(n, every);
      may_fail = true;
      const Answer answer = handler.answer(queued);
      may_fail = false;
      failed = fail_no_more();
      ++(answer.text ? tally.refused : tally.answered);
      EXPECT_NE(answer.message, "") << n;
    }
    tally.leaked += blocks_held - before;
    if (failed == 0) break;
  }
  return tally;
}

TEST(Memory, that_is_missing_while_a_request_is_answered_is_an_error_reply) {
  const std::string wrong = stub_request(
      4, 0.5,
      [](msgpack::Writer& to) {
        to.text("observation/imgae");
        to.nil();
      },
      1);
  std::string no_map;
  msgpack::Writer(no_map).nil();
  int64_t n = 0;
  answer_without_memory(stub_request(), true, n);  // what stays for good
  for (const auto& [name, request] : {std::pair("a request", stub_request()),
                                      {"one with an unknown key", wrong},
                                      {"no request", no_map}})
    for (const bool every : {false, true}) {
      const Tally tally = answer_without_memory(request, every, n);
      EXPECT_EQ(tally.leaked, 0) << name;
      EXPECT_LE(n, kFailuresMax) << name << ": more allocations than were tried";
      EXPECT_GT(tally.refused, 0) << name;
      fmt::print("row 10: {}, {} n-th allocation, n up to {}: {}\n", name, every ? "every" : "the",
                 n, tally.text());
    }
}

enum class Part { network, inference };

// One life of a server, of which a thread runs out of memory.
struct Life {
  bool replied = false, refused = false, closed = false;  // the first client
  bool served_next = false;                               // a second client, or else:
  bool ended = false;                                     // by itself, out of memory
  int64_t failed = 0;
};

class ServerInNeed {
 public:
  explicit ServerInNeed(Part part) {
    ServeOptions options{.policy = {.at = {}}, .admin = {}};
    options.policy.at.port = 0;
    std::promise<void> listening;
    options.ready = [&](uint16_t port, uint16_t) {
      port_ = port;
      may_fail = part == Part::network;
      listening.set_value();
    };
    thread_ = std::thread([this, options, part] {
      try {
        serve(
            [&](const auto&) {
              may_fail = part == Part::inference;
              return ServedPolicy{stub_card(), [this](const auto& seen, const auto& infer) {
                                    return stub_actions(stub_, seen, infer);
                                  }};
            },
            options);
      } catch (const std::bad_alloc&) {
        out_of_memory_ = true;
      }
      may_fail = false;
      ended_ = true;
    });
    listening.get_future().wait();
  }
  ~ServerInNeed() { thread_.join(); }

  Life live(const std::string& request, int64_t n, bool every) {
    Life life;
    fail_from_now_on(n, every);
    try {
      WebSocketClient client(url(), {.timeout_s = 3});
      client.receive();
      const auto reply = ask(client, request);
      (reply.text ? life.refused : life.replied) = true;
    } catch (const Error& e) {
      life.closed = true;
      EXPECT_EQ(std::string(e.what()).find("no answer"), std::string::npos) << n << e.what();
    }
    life.failed = fail_no_more();
    try {
      WebSocketClient client(url(), {.timeout_s = 3});
      client.receive();
      life.served_next = !ask(client, request).text;
    } catch (const Error&) {
      EXPECT_TRUE(wait_until([&] { return ended_.load(); })) << "half dead after " << n;
    }
    if (life.served_next) ::kill(::getpid(), SIGTERM);
    EXPECT_TRUE(wait_until([&] { return ended_.load(); })) << "does not stop after " << n;
    life.ended = out_of_memory_;
    return life;
  }

 private:
  std::string url() const { return "ws://127.0.0.1:" + std::to_string(port_); }
  std::atomic<uint16_t> port_ = 0;
  std::atomic<bool> ended_ = false, out_of_memory_ = false;
  StubPolicy stub_;
  std::thread thread_;
};

void run_out_of_memory(Part part, bool every) {
  const std::string request = stub_request(64);
  ServerInNeed(part).live(request, int64_t{1} << 40, false);  // what stays for good
  int64_t replies = 0, errors = 0, closes = 0, ends = 0, n = 1;
  for (; n <= kFailuresMax; ++n) {
    const int64_t before = blocks_held;
    const Life life = ServerInNeed(part).live(request, n, every);
    EXPECT_EQ(blocks_held, before) << "leaked, allocation " << n;
    EXPECT_TRUE(life.served_next != life.ended) << n;
    replies += life.replied;
    errors += life.refused;
    closes += life.closed;
    ends += life.ended;
    if (life.failed == 0) break;
  }
  EXPECT_LE(n, kFailuresMax);
  fmt::print(
      "row 10: {} thread, {} n-th allocation, n up to {}: {} replies, {} errors, {} closed "
      "connections, {} orderly ends\n",
      part == Part::network ? "network" : "inference", every ? "every" : "the", n, replies, errors,
      closes, ends);
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
