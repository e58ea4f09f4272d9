// server_race SECONDS: sixteen clients that connect, ask and vanish at random. Built with
// ThreadSanitizer, which ends the program with 66 when it saw a race.
#include <cstdlib>

#include "stub_server.h"

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  tendon::StubServer server({.answers = {.rtc = true}});
  server.policy.seconds = 0.001;
  const int64_t replies = tendon::sixteen_visitors(server, seconds);
  const int code = server.stop();
  fmt::print("{} replies in {} s, exit code {}\n", replies, seconds, code);
  return replies > 300 ? code : 1;
}
