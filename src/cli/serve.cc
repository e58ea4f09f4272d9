// tendon serve: openpi's policy server.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cstdio>

#include "cli/chunk_files.h"
#include "cli/verbs.h"
#include "serve/server.h"
#include "tensor/check.h"
#include "validate/certificate.h"

namespace tendon::cli {
namespace {

struct Given {
  std::string model, dialect = "openpi", api_key_file, certificate;
  OpenOptions open;
  ServeOptions serve;
  bool quiet = false;
};

void log_line(const std::string& line) {
  const auto now = std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now());
  fmt::print(stderr, "{:%H:%M:%S} {}\n", now, line);
}

void print_ready(const Given& g, const ModelCard& card, uint16_t port, uint16_t admin) {
  fmt::print(stderr,
             "serving {} ({}, {}) to {} robots: {} actions x {} steps, loaded in {:.1f} s, "
             "warm-up {:.0f} ms\n",
             card.model, card.backend, card.method, card.robot, card.action_dim, card.horizon,
             card.load_ms / 1e3, card.warm_up_ms);
  if (card.demo) fmt::print(stderr, "this is no policy for a real robot\n");
  fmt::print(stderr, "policy ws://{}:{} · page http://{}:{}/\n", g.serve.policy.at.host, port,
             g.serve.admin.host, admin);
}

void serve_policy(Given g) {
  ensure(g.dialect == "openpi" || g.dialect == "roboarena" || g.dialect == "vla-eval", Fault::usage,
         "--dialect {}: expected openpi, roboarena or vla-eval", g.dialect);
  if (g.dialect == "vla-eval") {
    g.serve.answers.dialect = Dialect::vla_eval;
    ensure(!g.serve.answers.rtc && g.serve.record.empty(), Fault::usage,
           "--rtc and --record are for openpi's clients; vla-eval hands chunks out itself and "
           "records on its own side");
  }
  ensure(g.serve.answers.chunk_steps == 0 || g.dialect == "vla-eval", Fault::usage,
         "--chunk-steps is for --dialect vla-eval; openpi's clients get whole chunks");
  if (g.dialect == "roboarena") {
    g.serve.answers.dialect = Dialect::roboarena;
    ensure(g.open.robot.empty() || g.open.robot == "droid", Fault::usage,
           "--dialect roboarena is for DROID robots, not '{}'", g.open.robot);
    g.open.robot = "droid";
  }
  if (!g.api_key_file.empty()) g.serve.policy.api_key = read_key(g.api_key_file);
  g.serve.log = g.quiet ? [](const std::string&) {} : log_line;
  ModelCard card;
  g.serve.ready = [&](uint16_t port, uint16_t admin) { print_ready(g, card, port, admin); };
  const auto open = [&](const Opening& opening) {
    ModelIdentity identity;
    if (!g.certificate.empty()) identity = identify(g.model, g.open);
    ServedPolicy policy = open_served(g.model, g.open, opening);
    ensure(g.serve.answers.guard_factor <= 0 || policy.card.action_ranges, Fault::usage,
           "--guard-factor needs q01 and q99 of the actions, which this model's statistics lack");
    identity.method = policy.card.method;
    if (!g.certificate.empty())
      for (const std::string& difference :
           check_certificate(read_text(g.certificate, "--certificate"), identity))
        fmt::print(stderr, "note: {}\n", printable(difference));
    card = policy.card;
    return policy;
  };
  const int code = serve(open, g.serve);
  if (code != 0) std::exit(code);  // NOLINT: the exit code of an interrupted command
}

void add_limits(CLI::App& verb, ServeOptions& serve) {
  WebSocketOptions& at = serve.policy;
  verb.add_option("--max-clients", at.connections_max, "connections at once; default 64")
      ->check(CLI::Range(1, 4096));
  verb.add_option("--max-message", at.message_bytes_max, "of one request; default 64MB")
      ->transform(CLI::AsSizeValue(true));
  verb.add_option("--silence-s", at.silence_max_s,
                  "a connection without any sign of life, pongs included, is cut; default 120");
  verb.add_option("--max-observation-age-ms", serve.answers.observation_age_ms_max,
                  "refuse requests whose observed_at is older; default: any");
  verb.add_option("--guard-factor", serve.answers.guard_factor,
                  "refuse to send actions beyond so many times the range q01 to q99");
  verb.add_option("--max-failures", serve.answers.failures_max,
                  "failures in a row until /readyz says no; default 3");
  verb.add_option("--max-inference-s", serve.inference_s_max,
                  "a longer inference is a hang: exit 70; default 20 warm-ups, at least 60");
}

}  // namespace

void add_serve(CLI::App& app) {
  const auto [verb, o] =
      add_verb<Given>(app, "serve", "policy server for robots that talk to openpi's", serve_policy);
  ServeOptions& serve = o.serve;
  verb.add_option("--host", serve.policy.at.host,
                  "address to listen at; default 127.0.0.1; 0.0.0.0: every network of the machine");
  verb.add_option("--port", serve.policy.at.port, "of the policy; default 8000; 0: any free one");
  verb.add_option("--admin-host", serve.admin.host,
                  "for health, metrics and the page; default 127.0.0.1");
  verb.add_option("--admin-port", serve.admin.port, "default 8001");
  verb.add_option("--api-key-file", o.api_key_file,
                  "clients must send the key in this file's first line");
  verb.add_option("--certificate", o.certificate,
                  "of tendon certify; refuse to start with any other model");
  verb.add_option(
      "--allow-origin", serve.policy.origins,
      "a web page's origin that may connect, or *: any; default: the server's own address");
  verb.add_option("--dialect", o.dialect, "openpi (default), roboarena or vla-eval");
  verb.add_option("--chunk-steps", serve.answers.chunk_steps,
                  "vla-eval: actions of a chunk until the next inference; default all")
      ->check(CLI::PositiveNumber);
  verb.add_option("--seed", serve.answers.seed,
                  "of the noise of every request without its own; default 0");
  verb.add_flag("--fresh-noise", serve.answers.fresh_noise,
                "another noise for every request, counted on from --seed, as openpi does");
  verb.add_flag("--rtc", serve.answers.rtc,
                "keep each connection's last chunk for requests with actions_consumed");
  verb.add_option("--control-hz", serve.answers.control_hz,
                  "actions per second, to estimate inference_delay where a request has none");
  verb.add_flag("--strict-openpi", serve.answers.strict_openpi,
                "close with 1011 after every error, as openpi does");
  verb.add_option("--record", serve.record, "write every message to a file in DIR");
  verb.add_option("--notify-socket", serve.notify_socket, "systemd's $NOTIFY_SOCKET");
  verb.add_flag("--quiet", o.quiet, "no line per client and refused request");
  add_limits(verb, serve);
}

}  // namespace tendon::cli
