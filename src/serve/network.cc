// The hub: ports, the timer that looks after every connection, and the public face of it all.
#include "serve/network.h"

#include <boost/asio/executor_work_guard.hpp>

#include "client/websocket_client.h"
#include "serve/network_parts.h"

namespace tendon {

namespace wire {
namespace {

constexpr double kTickSeconds = 0.1;  // how late a timeout may be
constexpr double kAcceptAgainSeconds = 0.1;
constexpr size_t kLingeringMax = 128;

std::vector<tcp::endpoint> resolve(Loop& loop, const PortOptions& at) {
  if (at.host.empty() || at.host == "*")
    return {{asio::ip::address_v6::any(), at.port}, {tcp::v4(), at.port}};
  if (is_localhost(at.host))
    return {{asio::ip::address_v4::loopback(), at.port},
            {asio::ip::address_v6::loopback(), at.port}};
  ErrorCode ec;
  const auto found =
      tcp::resolver(loop).resolve(at.host, std::to_string(at.port), tcp::resolver::passive, ec);
  ensure(!ec, Fault::network,
         "host '{}' is unknown to this machine; give an address such as 127.0.0.1, or 0.0.0.0 for "
         "every network",
         at.host);
  std::vector<tcp::endpoint> ends;
  for (const auto& entry : found) ends.push_back(entry.endpoint());
  return ends;
}

[[noreturn]] void refuse(const PortOptions& at, const ErrorCode& ec) {
  if (ec == asio::error::address_in_use)
    fail(Fault::network, "port {} is in use; stop the other server or give {} N", at.port, at.flag);
  if (ec == asio::error::access_denied)
    fail(Fault::network, "no permission for port {}; give {} N with N of 1024 or more", at.port,
         at.flag);
  if (ec == boost::system::errc::address_not_available)
    fail(Fault::network,
         "'{}' is no address of this machine; give one of its own, 127.0.0.1, or 0.0.0.0 for every "
         "network",
         at.host);
  fail(Fault::network, "cannot listen at host '{}', port {}: {}; give another host or {} N",
       at.host, at.port, ec.message(), at.flag);
}

// At every address of a name ("localhost" is two), which all have one port. "*" is one that takes
// IPv4 as well where the machine has IPv6.
std::list<Acceptor> bound(Loop& loop, const PortOptions& at) {
  const bool everywhere = at.host.empty() || at.host == "*";
  std::list<Acceptor> acceptors;
  ErrorCode first_error;
  for (tcp::endpoint end : resolve(loop, at)) {
    if (!acceptors.empty()) end.port(acceptors.front().local_endpoint().port());
    Acceptor acceptor(loop);
    ErrorCode ec;
    acceptor.open(end.protocol(), ec);
    if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor.bind(end, ec);
    if (ec && !first_error) first_error = ec;
    if (ec == asio::error::address_in_use || ec == asio::error::access_denied) refuse(at, ec);
    if (!ec) acceptors.push_back(std::move(acceptor));
    if (!ec && everywhere) break;
  }
  if (acceptors.empty()) refuse(at, first_error);
  return acceptors;
}

}  // namespace

void Hub::accept(Port& port, Acceptor& acceptor) {
  const auto head = std::make_shared<HttpConnection>(*this, port, next_id++);
  acceptor.async_accept(head->stream().socket(), [this, &port, &acceptor, head](ErrorCode ec) {
    if (!acceptor.is_open()) return;
    // Too many open files, most likely: they get fewer.
    if (ec) return after(kAcceptAgainSeconds, [this, &port, &acceptor] { accept(port, acceptor); });
    accepted(port, head);
    accept(port, acceptor);
  });
}

void Hub::accepted(Port& port, const std::shared_ptr<HttpConnection>& head) {
  ++counters.accepted;
  ErrorCode ignored;
  head->stream().socket().set_option(tcp::no_delay(true), ignored);
  if (port.http_connections.size() >= static_cast<size_t>(port.options.handshakes_max)) {
    // A healthy head is here in milliseconds: the oldest is the one that waits on purpose.
    ++counters.over_capacity;
    port.http_connections.begin()->second->drop();
  }
  port.http_connections[head->id()] = head;
  head->read();
}

void Hub::linger(Stream stream) {
  if (lingering.size() >= kLingeringMax) {
    lingering.front()->cut();
    lingering.pop_front();
  }
  lingering.push_back(std::make_shared<LingeringClose>(*this, std::move(stream)));
  lingering.back()->read();
}

WebSocketConnection* Hub::find(ConnectionId id) const {
  const auto found = websockets.find(id);
  return found == websockets.end() ? nullptr : found->second.get();
}

void Hub::after(double wait_s, std::function<void()> action) {
  const auto timer = std::make_shared<asio::steady_timer>(loop, seconds(wait_s));
  timer->async_wait([timer, action = std::move(action)](ErrorCode ec) {
    if (!ec) action();
  });
}

void Hub::tick() {
  const Time now = Clock::now();
  for (const auto& port : ports)
    for (const auto& [id, head] : std::map(port->http_connections))
      if (now > head->deadline()) head->expire();
  for (const auto& [id, socket] : websockets) socket->tick(now);
  for (const auto& peer : lingering)
    if (now > peer->deadline) peer->cut();
  after(kTickSeconds, [this] { tick(); });
}

void Hub::wait_for(asio::signal_set& set, const std::function<void(int)>& action) {
  set.async_wait([this, &set, action](ErrorCode ec, int signal) {
    if (ec) return;
    wait_for(set, action);
    action(signal);
  });
}

}  // namespace wire

void check_port(const PortOptions& at) {
  wire::Loop loop;
  wire::bound(loop, at);
}

Network::Network() : hub_(std::make_unique<wire::Hub>()) {}
Network::~Network() = default;

uint16_t Network::listen(const WebSocketOptions& options, WebSocketEvents* events,
                         HttpHandler http) {
  std::list<wire::Acceptor> acceptors = wire::bound(hub_->loop, options.at);
  for (wire::Acceptor& acceptor : acceptors) {
    wire::ErrorCode ec;
    acceptor.listen(boost::asio::socket_base::max_listen_connections, ec);
    if (ec) wire::refuse(options.at, ec);
  }
  wire::Port& port = *hub_->ports.emplace_back(std::make_unique<wire::Port>());
  port.options = options;
  port.events = events;
  port.http = std::move(http);
  port.acceptors = std::move(acceptors);
  for (wire::Acceptor& acceptor : port.acceptors) hub_->accept(port, acceptor);
  return port.acceptors.front().local_endpoint().port();
}

void Network::stop_listening() {
  for (const auto& port : hub_->ports) {
    if (!port->events) continue;
    port->listening = false;
    for (wire::Acceptor& acceptor : port->acceptors) acceptor.close();
  }
}

void Network::send(ConnectionId id, std::string message, bool text) {
  if (wire::WebSocketConnection* socket = hub_->find(id)) socket->send(std::move(message), text);
}

void Network::resume(ConnectionId id) {
  if (wire::WebSocketConnection* socket = hub_->find(id)) socket->resume();
}

void Network::close(ConnectionId id, CloseCode code, std::string_view reason) {
  if (wire::WebSocketConnection* socket = hub_->find(id)) socket->close(code, reason);
}

void Network::post(std::function<void()> action) {
  boost::asio::post(hub_->loop, std::move(action));
}

void Network::after(double seconds, std::function<void()> action) {
  hub_->after(seconds, std::move(action));
}

void Network::on_signals(std::vector<int> signals, std::function<void(int)> action) {
  boost::asio::signal_set& set = hub_->signals.emplace_back(hub_->loop);
  for (const int signal : signals) set.add(signal);
  hub_->wait_for(set, action);
}

void Network::run() {
  hub_->tick();  // also what keeps the loop alive without a port
  hub_->loop.run();
}

void Network::stop() {
  post([this] {
    for (const auto& port : hub_->ports) {
      for (wire::Acceptor& acceptor : port->acceptors) acceptor.close();
      for (const auto& [id, head] : std::map(port->http_connections)) head->drop();
    }
    for (const auto& [id, socket] : std::map(hub_->websockets)) socket->finish(false);
    for (const auto& peer : hub_->lingering) peer->cut();
    hub_->loop.stop();
  });
}

const NetworkCounters& Network::counters() const { return hub_->counters; }

}  // namespace tendon
