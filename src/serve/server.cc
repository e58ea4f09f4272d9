#include "serve/server.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <exception>
#include <thread>

#include "serve/recording.h"
#include "tensor/check.h"
#include "tensor/embed.h"

TENDON_EMBED(char, tendon_status_page, TENDON_PAGE);  // one HTML file

namespace tendon {
namespace {

constexpr double kTickSeconds = 0.25;
constexpr double kWatchdogSeconds = 2;
constexpr double kHangWarmUps = 20, kHangSecondsMin = 60;
constexpr double kCloseFramesSeconds = 0.5;  // for close frames to leave
constexpr int kExitHang = 70, kExitInterrupted = 130;

// sd_notify(3): one datagram. A leading '@' is the abstract namespace.
void notify_systemd(const std::string& path, const std::string& state) {
  sockaddr_un to{.sun_family = AF_UNIX};
  if (path.empty() || path.size() >= sizeof(to.sun_path)) return;
  path.copy(to.sun_path, path.size());
  if (path.front() == '@') to.sun_path[0] = '\0';
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  // Serving goes on without systemd.
  (void)::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&to), size);
  ::close(fd);
}

// On both ports.
HttpReply health(const HttpRequest& request) {
  if (request.target == "/healthz") return {.body = "OK\n"};
  return {.status = 404, .body = "not found\n"};
}

class Server final : public WebSocketEvents {
 public:
  Server(const OpenPolicy& open, const ServeOptions& options) : open_(open), options_(options) {
    if (!options_.log) options_.log = [](const std::string&) {};
  }
  int run();

 private:
  void opened(ConnectionId id, const Peer& peer) override;
  bool received(ConnectionId id, Bytes message, bool text) override;
  void sent(ConnectionId id) override;
  void closed(ConnectionId id) override;

  HttpReply admin(const HttpRequest& request) const;
  void tick();
  void stop_on(int signal);
  void hung();
  void close_connections(CloseCode code = CloseCode::going_away,
                         std::string_view reason = "the server is stopping");

  // On the inference thread.
  void infer_until_stopped();
  void record(const QueuedRequest& request, const Answer& answer);

  // On the I/O thread, posted by the inference thread.
  void start_listening();
  void deliver(ConnectionId id, Clock::time_point received, Answer answer);

  const OpenPolicy& open_;
  ServeOptions options_;
  Network network_;
  Metrics metrics_;
  RequestQueue queue_;
  std::unique_ptr<RequestHandler> handler_;
  std::unique_ptr<Recorder> recorder_;
  Sessions sessions_;
  std::string greeting_;
  uint16_t port_ = 0, admin_port_ = 0;
  std::exception_ptr error_;
  std::atomic<Clock::rep> infer_begin_ = 0;  // ticks; 0: idle
  std::atomic<bool> inference_ended_ = false;
  int signal_ = 0, exit_code_ = 0;
  bool closing_ = false;
  Clock::time_point notified_{};
};

HttpReply Server::admin(const HttpRequest& request) const {
  const std::string path = request.target.substr(0, request.target.find('?'));
  if (request.method != "GET" && request.method != "HEAD")
    return {.status = 405, .body = "only GET and HEAD\n"};
  if (path == "/readyz") {
    if (metrics_.state() == ServerState::ready) return {.body = "ready\n"};
    return {.status = 503,
            .body = fmt::format("{}: {}\n", name(metrics_.state()), metrics_.reason())};
  }
  if (path == "/metrics")
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
            .body = metrics_.prometheus(sessions_, network_.counters())};
  if (path == "/status")
    return {.content_type = "application/json", .body = metrics_.status_json(sessions_)};
  if (path == "/")
    return {.content_type = "text/html; charset=utf-8",
            .body = std::string(tendon_status_page, tendon_status_page_end)};
  return health(request);
}

void Server::opened(ConnectionId id, const Peer& peer) {
  const auto session = std::make_shared<Session>();
  session->id = id;
  session->peer = peer;
  session->latest_wins = peer.target.find("queue=latest") != std::string::npos;
  sessions_[id] = session;
  options_.log(fmt::format("client {} connected from {}", id, peer.address));
  if (!greeting_.empty()) network_.send(id, greeting_);
}

bool Server::received(ConnectionId id, Bytes message, bool) {
  const std::shared_ptr<Session>& session = sessions_.at(id);
  const Clock::time_point now = Clock::now();
  const Clock::rep before = session->last_request_ticks.exchange(now.time_since_epoch().count());
  if (before != 0) {
    const double seconds =
        std::chrono::duration<double>(now.time_since_epoch() - Clock::duration(before)).count();
    const double rate = 1 / std::max(seconds, 1e-6);
    session->rate_hz = session->rate_hz > 0 ? 0.9 * session->rate_hz + 0.1 * rate : rate;
  }
  const RequestQueue::Put put = queue_.put({session, std::move(message), now});
  if (put.replaced) {
    ++session->skipped;
    metrics_.count(Outcome::skipped);
  }
  return !put.full;
}

void Server::sent(ConnectionId id) {
  Session& session = *sessions_.at(id);
  if (!session.replying) return;  // the greeting
  session.prev_total_ms = ms_between(*session.replying, Clock::now());
  session.replying.reset();
}

void Server::closed(ConnectionId id) {
  queue_.forget(id);
  options_.log(
      fmt::format("client {} left after {} replies", id, sessions_.at(id)->answered.load()));
  sessions_.erase(id);
  if (closing_ && sessions_.empty()) network_.stop();
}

void Server::deliver(ConnectionId id, Clock::time_point received, Answer answer) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || answer.message.empty()) return;
  found->second->replying = received;
  // Until it is sent; a quick client's next request may be here before that is known.
  found->second->prev_total_ms = ms_between(received, Clock::now());
  network_.send(id, std::move(answer.message), answer.text);
  if (answer.close) network_.close(id, *answer.close, answer.close_reason);
}

void Server::record(const QueuedRequest& request, const Answer& answer) {
  if (!recorder_) return;
  const ConnectionId id = request.session->id;
  recorder_->write(RecordKind::request, id, answer.seed, request.message, request.received);
  recorder_->write(answer.text ? RecordKind::text_error : RecordKind::reply, id, answer.seed,
                   bytes_of(answer.message));
}

void Server::infer_until_stopped() {
  try {
    ServedPolicy policy =
        open_({.loading = [this](const LoadProgress& p) { metrics_.set_progress(p); },
               .warming = [this] { metrics_.set_state(ServerState::warming, "first run"); }});
    metrics_.set_card(policy.card);
    if (options_.inference_s_max <= 0)
      options_.inference_s_max =
          std::max(kHangSecondsMin, kHangWarmUps * policy.card.warm_up_ms / 1e3);
    if (!options_.record.empty())
      recorder_ = std::make_unique<Recorder>(options_.record, policy.card.fingerprint,
                                             [this](const std::string& text) {
                                               metrics_.warn(text);
                                               options_.log("warning: " + text);
                                             });
    greeting_ = write_greeting(policy.card, options_.answers.dialect);
    handler_ =
        std::make_unique<RequestHandler>(std::move(policy), options_.answers, metrics_,
                                         [this](const std::string& line) { options_.log(line); });
    network_.post([this] { start_listening(); });
    while (std::optional<QueuedRequest> request = queue_.take()) {
      const ConnectionId id = request->session->id;
      infer_begin_ = Clock::now().time_since_epoch().count();
      network_.post([this, id] { network_.resume(id); });
      Answer answer = handler_->answer(*request);
      infer_begin_ = 0;
      network_.post([this, id, at = request->received, answer] { deliver(id, at, answer); });
      record(*request, answer);  // the robot does not wait for the disk
    }
  } catch (const std::exception&) {
    error_ = std::current_exception();
  }
  inference_ended_ = true;
  try {
    network_.post([this] { close_connections(); });
  } catch (const std::bad_alloc&) {
    return;  // tick() looks as well
  }
}

void Server::start_listening() {
  if (signal_ != 0) return;
  try {
    port_ = network_.listen(options_.policy, this, health);
  } catch (const Error&) {
    error_ = std::current_exception();
    queue_.close();
    return;
  }
  metrics_.set_state(ServerState::ready, "answering requests");
  notify_systemd(options_.notify_socket, "READY=1");
  if (options_.ready) options_.ready(port_, admin_port_);
}

// Lets run() return.
void Server::close_connections(CloseCode code, std::string_view reason) {
  if (closing_) return;
  closing_ = true;
  network_.stop_listening();
  for (const auto& [id, session] : sessions_) network_.close(id, code, reason);
  if (sessions_.empty()) network_.stop();
  network_.after(kCloseFramesSeconds, [this] { network_.stop(); });
}

void Server::stop_on(int signal) {
  if (signal_ != 0) std::_Exit(128 + signal);
  signal_ = signal;
  exit_code_ = signal == SIGINT ? kExitInterrupted : 0;
  options_.log("stopping: the running request is answered first");
  metrics_.set_state(ServerState::draining, "stopping");
  notify_systemd(options_.notify_socket, "STOPPING=1");
  network_.stop_listening();
  queue_.close();
  const bool loading = port_ == 0;  // no request is running
  network_.after(loading ? 0 : options_.drain_s_max, [this] {
    if (!inference_ended_) close_connections();
  });
}

void Server::hung() {
  metrics_.set_state(ServerState::failed, "the inference hangs");
  options_.log(fmt::format("an inference takes longer than {:.0f} s: giving up, exit code {}",
                           options_.inference_s_max, kExitHang));
  exit_code_ = kExitHang;
  for (const auto& [id, session] : sessions_)
    network_.send(id, "the policy hangs; the server restarts", true);
  close_connections(CloseCode::internal_error, "the policy hangs");
}

void Server::tick() {
  const Clock::time_point now = Clock::now();
  if (inference_ended_) close_connections();
  const Clock::rep begin = infer_begin_;
  if (begin != 0 && !closing_) {
    const Clock::time_point since{Clock::duration(begin)};
    const auto chunks = static_cast<double>(handler_->chunks());
    if (ms_between(since, now) > chunks * options_.inference_s_max * 1e3) hung();
  }
  if (!options_.notify_socket.empty() && ms_between(notified_, now) > kWatchdogSeconds * 1e3 &&
      metrics_.state() != ServerState::failed) {
    notified_ = now;
    notify_systemd(options_.notify_socket, "WATCHDOG=1");
  }
  network_.after(kTickSeconds, [this] { tick(); });
}

int Server::run() {
  check_port(options_.policy.at);
  admin_port_ =
      network_.listen({.at = options_.admin}, nullptr, [this](const auto& r) { return admin(r); });
  network_.on_signals({SIGINT, SIGTERM}, [this](int signal) { stop_on(signal); });
  if (options_.admin_ready) options_.admin_ready(admin_port_);
  tick();
  std::thread inference([this] { infer_until_stopped(); });
  std::exception_ptr out_of_memory;
  try {
    network_.run();
  } catch (const std::bad_alloc&) {
    // Who waits for what can no longer be told: an end that a supervisor sees, no half-dead server.
    out_of_memory = std::current_exception();
    exit_code_ = static_cast<int>(Fault::memory);
    queue_.close();
    const auto end = Clock::now() + std::chrono::duration<double>(options_.drain_s_max);
    while (!inference_ended_ && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!inference_ended_) std::_Exit(exit_code_);  // it cannot be interrupted
  inference.join();
  if (out_of_memory) std::rethrow_exception(out_of_memory);
  if (error_) std::rethrow_exception(error_);
  return exit_code_;
}

}  // namespace

int serve(const OpenPolicy& open, const ServeOptions& options) {
  constexpr size_t kPathBytesMax = sizeof(sockaddr_un::sun_path) - 1;
  ensure(options.notify_socket.size() <= kPathBytesMax, Fault::network,
         "--notify-socket has {} bytes, a socket's path at most {}; give a shorter one",
         options.notify_socket.size(), kPathBytesMax);
  return Server(open, options).run();
}

}  // namespace tendon
