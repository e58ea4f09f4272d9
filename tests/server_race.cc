// server_race SECONDS: sixteen clients that connect, ask and vanish at random. Built with
// ThreadSanitizer, which ends the program with 66 when it saw a race.
#include <cstdlib>

#include "stub_server.h"

namespace tendon {
namespace {

// Connects, asks and vanishes at random, again and again; returns how often it was answered.
int64_t visit_at_random(const StubServer& server, unsigned seed, double seconds) {
  int64_t replies = 0;
  unsigned state = seed;
  const auto roll = [&] { return (state = state * 1664525U + 1013904223U) >> 16; };
  const std::string request = stub_request(64);
  for (const double end = now_s() + seconds; now_s() < end;) {
    WebSocketClient client = server.client(roll() % 3 == 0 ? "/?queue=latest" : "/");
    for (; roll() % 20 != 0; ++replies) ask(client, request);
    if (roll() % 2 == 0) client.send(bytes_of(request));  // nobody will wait for it
    if (roll() % 2 == 0) client.close();
  }
  return replies;
}

}  // namespace
}  // namespace tendon

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  tendon::StubServer server({.answers = {.rtc = true}});
  server.policy.seconds = 0.001;
  std::atomic<int64_t> replies = 0;
  std::vector<std::thread> visitors;
  for (unsigned seed = 1; seed <= 16; ++seed)
    visitors.emplace_back([&, seed] { replies += tendon::visit_at_random(server, seed, seconds); });
  for (std::thread& visitor : visitors) visitor.join();
  tendon::WebSocketClient client = server.client();
  const bool served = !tendon::ask(client, tendon::stub_request()).text;
  client.close();
  const int code = server.stop();
  fmt::print("{} replies in {} s, exit code {}\n", replies.load(), seconds, code);
  return replies > 300 && served ? code : 1;
}
