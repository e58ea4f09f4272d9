// server_race SECONDS: sixteen clients that connect, ask and vanish at random, while others read
// the admin port. Built with ThreadSanitizer, which ends the program with 66 when it saw a race.
#include <fmt/format.h>

#include <cstdlib>

#include "stub_server.h"

namespace tendon {
namespace {

using EndTime = Clock::time_point;

void visit(const StubServer& server, unsigned seed, EndTime end, std::atomic<int64_t>& replies) {
  unsigned state = seed;
  const auto roll = [&] { return (state = state * 1664525U + 1013904223U) >> 16; };
  const std::string request = stub_request(64);
  while (Clock::now() < end) {
    WebSocketClient client = server.client(roll() % 3 == 0 ? "/?queue=latest" : "/");
    while (roll() % 20 != 0) {
      ask(client, request);
      ++replies;
    }
    if (roll() % 2 == 0) client.send(bytes_of(request));  // nobody will wait for it
    if (roll() % 2 == 0) client.close();
  }
}

int run(double seconds) {
  StubServer server({.answers = {.rtc = true}});
  server.policy.seconds = 0.001;
  const EndTime end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                         std::chrono::duration<double>(seconds));
  std::atomic<int64_t> replies = 0;
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 16; ++seed)
    threads.emplace_back([&, seed] { visit(server, seed, end, replies); });
  for (std::thread& thread : threads) thread.join();
  const int code = server.stop();
  fmt::print("{} replies in {} s, exit code {}\n", replies.load(), seconds, code);
  return replies > 1000 ? code : 1;
}

}  // namespace
}  // namespace tendon

int main(int argc, char** argv) { return tendon::run(argc > 1 ? std::atof(argv[1]) : 60); }
