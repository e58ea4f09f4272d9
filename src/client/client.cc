#include "tendon/client.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "client/websocket_client.h"
#include "client/wire_fields.h"
#include "tensor/check.h"
#include "tensor/stop_watch.h"

namespace tendon {
namespace {

using msgpack::Writer;

constexpr size_t kDroidJoints = 7;
constexpr double kRetrySeconds = 1;  // of keep_trying

Image view_of(int height, int width, std::span<const uint8_t> rgb, bool planar) {
  return {.height = height, .width = width, .rgb = Pixels::view(rgb), .planar = planar};
}

Image view_of(const Image& image) {
  return view_of(image.height, image.width, image.rgb.bytes(), image.planar);
}

std::vector<uint8_t> planes(const Image& image) {
  const size_t pixels = image.rgb.size() / 3;
  std::vector<uint8_t> planar(image.rgb.size());
  for (size_t i = 0; i < pixels; ++i)
    for (size_t channel = 0; channel < 3; ++channel)
      planar[channel * pixels + i] = image.rgb[3 * i + channel];
  return planar;
}

void write_picture(Writer& to, std::string_view key, const Image& image, bool planar_wanted) {
  const int64_t height = image.height, width = image.width;
  ensure(height > 0 && width > 0 && std::ssize(image.rgb.bytes()) == 3 * height * width,
         Fault::input, "picture '{}' has {} bytes, expected 3 x {} x {}", key, image.rgb.size(),
         height, width);
  if (image.planar)
    to.array("|u1", std::array{int64_t{3}, height, width}, image.rgb.bytes());
  else if (planar_wanted)
    to.array("|u1", std::array{int64_t{3}, height, width}, planes(image));
  else
    to.array("|u1", std::array{height, width, int64_t{3}}, image.rgb.bytes());
}

// One overload per kind of value on the wire.
struct EntryWriter {
  Writer& to;
  std::string_view key;

  void operator()(const Image& image) const { write_picture(to, key, image, false); }
  void operator()(const RemoteObservation::Cameras& cameras) const {
    to.map(std::ssize(cameras));
    for (const auto& [name, image] : cameras) {
      to.text(name);
      write_picture(to, name, image, true);
    }
  }
  void operator()(const std::vector<double>& values) const {
    check_finite(values, key);
    to.array(values, std::array{std::ssize(values)});
  }
  void operator()(const std::string& text) const { to.text(text); }
  void operator()(double number) const {
    check_finite({&number, 1}, key);
    to.number(number);
  }
};

size_t picture_bytes(const RemoteObservation::Value& value) {
  if (const auto* image = std::get_if<Image>(&value)) return image->rgb.size();
  size_t bytes = 0;
  if (const auto* cameras = std::get_if<RemoteObservation::Cameras>(&value))
    for (const auto& [name, image] : *cameras) bytes += image.rgb.size();
  return bytes;
}

void check_actions(const RemoteActions& actions) {
  for (int64_t i = 0; i < std::ssize(actions.values); ++i) {
    const double value = actions.values[static_cast<size_t>(i)];
    ensure(std::isfinite(value), Fault::internal, "the server's action {} of row {} is {}",
           i % actions.dim, i / actions.dim, value);
  }
}

std::string_view as_text(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// What a server sends that is no greeting or reply is not the caller's input.
template <class Read>
auto from_server(const Bytes& message, Read read) {
  try {
    return read(msgpack::decode(message));
  } catch (const Error& error) {
    fail(Fault::network, "the server does not speak openpi's protocol: {}", error.what());
  }
}

// A server that still loads does not listen; a proxy in front of it says 502 or 503. A wrong
// address, an unknown host or a refused key stays what it is.
bool may_come_up(const Error& error) {
  const std::string_view text = error.what();
  return text.starts_with("cannot connect") || text.find(" answered 502 ") != text.npos ||
         text.find(" answered 503 ") != text.npos;
}

}  // namespace

RemoteObservation::Value& RemoteObservation::at(std::string key) {
  for (auto& [known, value] : entries_)
    if (known == key) return value;
  return entries_.emplace_back(std::move(key), Value{}).second;
}

RemoteObservation& RemoteObservation::image(std::string key, int height, int width,
                                            std::span<const uint8_t> rgb, bool planar) {
  return image(std::move(key), view_of(height, width, rgb, planar));
}

RemoteObservation& RemoteObservation::camera(std::string name, Image picture) {
  Value& images = at("images");
  if (!std::holds_alternative<Cameras>(images)) images = Cameras{};
  Cameras& cameras = std::get<Cameras>(images);
  const auto found = std::ranges::find(cameras, name, &Cameras::value_type::first);
  if (found != cameras.end())
    found->second = std::move(picture);
  else
    cameras.emplace_back(std::move(name), std::move(picture));
  return *this;
}

RemoteObservation& RemoteObservation::camera(std::string name, int height, int width,
                                             std::span<const uint8_t> rgb, bool planar) {
  return camera(std::move(name), view_of(height, width, rgb, planar));
}

RemoteObservation laid_out(const Observation& observation, const std::string& robot) {
  RemoteObservation out;
  const std::vector<double>& state = observation.state;
  const auto pictures = [&](const std::string& prefix) {
    for (const auto& [name, image] : observation.images) out.image(prefix + name, view_of(image));
  };
  if (robot == "aloha") {
    out.state("state", state);
    for (const auto& [name, image] : observation.images) out.camera(name, view_of(image));
  } else if (robot == "droid") {
    ensure(state.size() == kDroidJoints + 1, Fault::input,
           "the state has {} values, expected {} joints and a gripper", state.size(), kDroidJoints);
    pictures("observation/");
    out.state("observation/joint_position", {state.begin(), state.begin() + kDroidJoints});
    out.state("observation/gripper_position", {state.back()});
  } else if (robot == "libero") {
    pictures("observation/");
    out.state("observation/state", state);
  } else {
    ensure(robot == "lerobot", Fault::usage,
           "unknown robot '{}': expected 'aloha', 'droid', 'libero' or 'lerobot'", robot);
    pictures("observation.images.");
    out.state("observation.state", state);
  }
  if (observation.prompt) out.prompt(*observation.prompt);
  return out;
}

std::string request_message(const RemoteObservation& observation, const RemoteOptions& options) {
  constexpr size_t kRest = 4096;  // keys, state, prompt: once more than that, and the string grows
  FieldWriter fields;
  request_fields(options, fields);
  size_t bytes = kRest + fields.bytes().size();
  for (const auto& [key, value] : observation.entries()) bytes += picture_bytes(value);
  std::string message;
  message.reserve(bytes);
  Writer to(message);
  to.map(std::ssize(observation.entries()) + fields.entries());
  for (const auto& [key, value] : observation.entries()) {
    to.text(key);
    std::visit(EntryWriter{to, key}, value);
  }
  return message += fields.bytes();
}

struct PolicyClient::State {
  std::optional<WebSocketClient> socket;  // nothing once the connection is lost
  RemotePolicy policy;
};

PolicyClient::PolicyClient(const std::string& url) : PolicyClient(url, Options{}) {}

PolicyClient::PolicyClient(const std::string& url, const Options& options)
    : state_(std::make_unique<State>()) {
  while (!state_->socket) {
    try {
      state_->socket.emplace(url, options);
    } catch (const Error& error) {
      if (!options.keep_trying || !may_come_up(error)) throw;
      std::this_thread::sleep_for(std::chrono::duration<double>(kRetrySeconds));
    }
  }
  const WebSocketClient::Message first = state_->socket->receive();
  ensure(!first.text, Fault::network, "'{}' is no policy server, it says: {}", url,
         as_text(first.bytes));
  state_->policy = from_server(first.bytes, [&](const msgpack::Value& greeting) {
    ensure(greeting.kind == msgpack::Value::Kind::map, Fault::network,
           "'{}' began with {}, expected a map", url, describe(greeting));
    return read_greeting(greeting);
  });
}

PolicyClient::~PolicyClient() = default;
PolicyClient::PolicyClient(PolicyClient&&) noexcept = default;
PolicyClient& PolicyClient::operator=(PolicyClient&&) noexcept = default;

const RemotePolicy& PolicyClient::policy() const { return state_->policy; }

RemoteActions PolicyClient::ask(std::string_view request) {
  Replies replies = ask_rows(request);
  ensure(!replies.list, Fault::input,
         "the reply has several chunks: ask_rows() takes 'batch' and 'num_samples'");
  return std::move(replies.rows[0]);
}

PolicyClient::Replies PolicyClient::ask_rows(std::string_view request) {
  StopWatch watch;
  ensure(state_->socket.has_value(), Fault::network,
         "the connection to the policy server was lost: make a new PolicyClient");
  // Put back once its reply is here: on a connection that fails in between, a late reply would be
  // taken for the next request's.
  std::optional<WebSocketClient> socket = std::exchange(state_->socket, std::nullopt);
  socket->send(bytes_of(request));
  const WebSocketClient::Message reply = socket->receive();
  if (reply.text) {
    state_->socket = std::move(socket);
    fail(Fault::input, "{}", as_text(reply.bytes));
  }
  Replies replies = from_server(reply.bytes, read_replies);
  state_->socket = std::move(socket);
  const double ms = watch.lap_ms();
  for (RemoteActions& actions : replies.rows) {
    check_actions(actions);
    actions.round_trip_ms = ms;
  }
  return replies;
}

RemoteActions PolicyClient::infer(const RemoteObservation& observation,
                                  const RemoteOptions& options) {
  StopWatch watch;
  RemoteActions actions = ask(request_message(observation, options));
  const auto* id = options.request_id ? std::get_if<std::string>(&*options.request_id) : nullptr;
  if (id && !actions.request_id.empty() && actions.request_id != *id) {
    state_->socket.reset();
    fail(Fault::network, "the reply belongs to request '{}', expected '{}'", actions.request_id,
         *id);
  }
  actions.round_trip_ms = watch.lap_ms();
  return actions;
}

RemoteActions PolicyClient::infer(const Observation& observation, const std::string& robot,
                                  const RemoteOptions& options) {
  const std::string& said = state_->policy.robot;
  ensure(!robot.empty() || !said.empty(), Fault::usage,
         "the server does not say for which robot its policy is: name 'aloha', 'droid', 'libero' "
         "or 'lerobot'");
  return infer(laid_out(observation, robot.empty() ? said : robot), options);
}

}  // namespace tendon
