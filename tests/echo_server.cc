// A server for conformance suites: sends every message back. Prints "listening on PORT".
#include <fmt/format.h>

#include <csignal>
#include <cstdio>

#include "network_peers.h"

int main() {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);  // of the server's thread, too
  const tendon::TestServer server(
      {.message_bytes_max = 16 << 20, .fragments_max = 65'536, .text_messages = true});
  fmt::print("listening on {}\n", server.port);
  std::fflush(stdout);
  int signal = 0;
  return sigwait(&ends, &signal);
}
