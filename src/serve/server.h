// The policy server: one I/O thread (the caller's), one inference thread.
#pragma once

#include <functional>
#include <string>

#include "serve/model_card.h"
#include "serve/network.h"
#include "serve/request_handler.h"

namespace tendon {

struct ServeOptions {
  WebSocketOptions policy{.at = {.port = 8000}};
  PortOptions admin{.port = 8001, .flag = "--admin-port"};
  RequestOptions answers;
  std::string record;          // folder for recordings; "": none
  std::string notify_socket;   // of systemd; "": none
  double inference_s_max = 0;  // longer is a hang: exit 70. 0: 20 warm-ups, at least 60 s
  double drain_s_max = 4.5;    // after SIGTERM, for the running request
  std::function<void(const std::string&)> log;  // one line
  std::function<void(uint16_t admin_port)> admin_ready;
  std::function<void(uint16_t port, uint16_t admin_port)> ready;  // on the I/O thread
};

// Opens the admin port, then the policy by `open`, then the policy port; answers until SIGTERM (0)
// or SIGINT (130). Throws what `open` throws, and Error(Fault::network) for ports. A hanging
// inference ends the whole program with 70, as does a second signal (with 128 + its number).
using OpenPolicy = std::function<ServedPolicy(const Opening&)>;
int serve(const OpenPolicy& open, const ServeOptions& options);

}  // namespace tendon
