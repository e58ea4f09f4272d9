#include "serve/request.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "client/wire_fields.h"
#include "policy/images.h"
#include "policy/policy.h"
#include "policy/policy_spec_json.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

using msgpack::Array;
using msgpack::Value;
using Kind = Value::Kind;

constexpr int64_t kPictureSideMax = 8192;
constexpr size_t kKeysNamed = 8;
constexpr int64_t kExecutionHorizon = 10;  // lerobot's default
constexpr int64_t kPixelsMax = 16 << 20;   // of one message's compressed pictures

// What a message has, for the answer to one that lacks something. A peer's words: cut and escaped.
std::string keys_of(const Value& map) {
  std::string text;
  for (size_t i = 0; i < std::min(map.map.size(), kKeysNamed); ++i)
    text += fmt::format("{}'{}'", i == 0 ? "" : ", ", escaped(map.map[i].key));
  if (map.map.size() > kKeysNamed) text += ", ...";
  return text.empty() ? "nothing" : text;
}

const Value& needed(const Value& map, std::string_view key, std::string_view wanted) {
  const Value* found = map.find(key);
  ensure(found != nullptr, Fault::input, "key '{}' is missing: {} is needed; got the keys {}", key,
         wanted, keys_of(map));
  return *found;
}

// A number, a NumPy scalar of one, or an array of exactly one.
double read_number(const Value& value, std::string_view key) {
  const bool one =
      value.kind == Kind::array && value.array.size() == 1 && !is_text(value.array.dtype);
  const std::optional<double> number = one ? value.array.number(0) : plain_number(value);
  if (!number) fail(Fault::input, "'{}' is {}, expected a number", key, describe(value));
  ensure(std::isfinite(*number), Fault::input, "'{}' is {}, expected a finite number", key,
         *number);
  return *number;
}

// A vector of numbers: an array of one axis, a list, or a single number.
std::vector<double> read_row(const Value& value, std::string_view key) {
  std::vector<double> row;
  if (value.kind == Kind::list) {
    for (const Value& item : value.list) row.push_back(read_number(item, key));
    return row;
  }
  if (value.kind != Kind::array) return {read_number(value, key)};
  ensure(!is_text(value.array.dtype) && value.array.shape.size() <= 1, Fault::input,
         "'{}' is {}, expected one axis of numbers", key, describe(value));
  row = value.array.numbers();
  check_finite(row, key);
  return row;
}

// `least`: it may have as few numbers; otherwise `count`.
std::vector<double> read_row(const Value& map, std::string_view key, int64_t count,
                             const std::optional<int64_t>& least = {}) {
  const std::string expected = state_dims(count, least);
  std::vector<double> row =
      read_row(needed(map, key, fmt::format("the robot's state, {} numbers", expected)), key);
  ensure(std::ssize(row) >= least.value_or(count) && std::ssize(row) <= count, Fault::input,
         "'{}' has {} numbers, expected {}", key, row.size(), expected);
  return row;
}

std::optional<std::string> read_prompt(const Value& map, std::string_view key) {
  const Value* value = map.find(key);
  if (!value || value->kind == Kind::nil) return {};
  const bool scalar = value->kind == Kind::scalar && is_text(value->array.dtype);
  if (value->kind == Kind::text || value->kind == Kind::bytes || scalar)
    return std::string(value->text);
  ensure(value->kind == Kind::array && is_text(value->array.dtype) && value->array.size() == 1,
         Fault::input, "'{}' is {}, expected a text", key, describe(*value));
  return value->array.text(0);
}

// A picture whose key is `prefix` and the name of its camera.
void read_camera(const Value& picture, std::string_view prefix, const std::string& camera,
                 const std::vector<std::string>& cameras, Observation& out) {
  const std::string key = std::string(prefix) + camera;
  const bool known = std::ranges::find(cameras, camera) != cameras.end();
  ensure(known, Fault::input, "'{}' is no camera of this policy; nearest: '{}'", escaped(key),
         nearest(camera, cameras));
  out.images[camera] = read_picture(picture, key);
}

void read_aloha(const Value& map, const ModelCard& card, Observation& out) {
  const char* wanted = "a map of pictures by camera name";
  const Value& images = needed(map, "images", wanted);
  ensure(images.kind == Kind::map, Fault::input, "'images' is {}, expected {}", describe(images),
         wanted);
  const PolicySpec& robot = robot_named("aloha");
  std::vector<std::string> known;
  for (const auto& [camera, slot] : robot.cameras) known.push_back(camera);
  for (const msgpack::Entry& entry : images.map)
    read_camera(entry.value, "images/", std::string(entry.key), known, out);
  for (const std::string& camera : robot.required)
    ensure(out.images.contains(camera), Fault::input,
           "'images' lacks '{}', which this robot needs; got {}", camera, keys_of(images));
  out.state = read_row(map, "state", card.state_dim);
}

// DROID and LIBERO: flat keys with a prefix.
void read_pictures(const Value& map, const PolicySpec& robot, Observation& out) {
  for (const auto& [camera, slot] : robot.cameras) {
    const std::string key = "observation/" + camera;
    const bool required = std::ranges::find(robot.required, camera) != robot.required.end();
    if (required || map.find(key))
      out.images[camera] = read_picture(needed(map, key, "a picture"), key);
  }
}

std::vector<double> read_droid_state(const Value& map) {
  std::vector<double> state = read_row(map, "observation/joint_position", 7);
  state.push_back(read_row(map, "observation/gripper_position", 1)[0]);
  return state;
}

// RoboArena's clients count external cameras from 0 or from 1; the policy looks through one.
void read_roboarena(const Value& map, Observation& out) {
  const char* first = "observation/exterior_image_0_left";
  const char* second = "observation/exterior_image_1_left";
  const char* key = map.find(second) || !map.find(first) ? second : first;
  out.images["exterior_image_1_left"] = read_picture(needed(map, key, "a picture"), key);
  const char* wrist = "observation/wrist_image_left";
  out.images["wrist_image_left"] = read_picture(needed(map, wrist, "a picture"), wrist);
  out.state = read_droid_state(map);
}

// lerobot's names, "observation.images.top" and "observation.state"; also a map "images" and
// "state", so that a model with own camera names can be asked in openpi's shortest form.
void read_lerobot(const Value& map, const ModelCard& card, Observation& out) {
  std::vector<std::string> known = card.cameras;
  known.insert(known.end(), card.other_cameras.begin(), card.other_cameras.end());
  struct Unknown {
    const Value& picture;
    std::string_view prefix;
    std::string camera;
  };
  std::vector<Unknown> unknown;
  const auto read = [&](const Value& picture, std::string_view prefix, std::string camera) {
    if (std::ranges::find(known, camera) != known.end())
      read_camera(picture, prefix, camera, known, out);
    else
      unknown.push_back({picture, prefix, std::move(camera)});
  };
  for (const msgpack::Entry& entry : map.map) {
    for (const std::string_view prefix : {"observation.images.", "observation/images/"})
      if (entry.key.starts_with(prefix))
        read(entry.value, prefix, std::string(entry.key.substr(prefix.size())));
    // Features whose names do not begin so are cameras under their whole names.
    if (std::ranges::find(known, entry.key) != known.end())
      read(entry.value, "", std::string(entry.key));
  }
  if (const Value* images = map.find("images"))
    for (const msgpack::Entry& entry : images->map)
      read(entry.value, "images/", std::string(entry.key));
  // A wrong name, unless all of the model's are there: then the policy says that it is not used.
  const bool all_there = out.images.size() >= card.cameras.size();
  for (const auto& [picture, prefix, camera] : unknown)
    if (all_there)
      out.images[camera] = read_picture(picture, std::string(prefix) + camera);
    else
      read_camera(picture, prefix, camera, known, out);
  ensure(!out.images.empty(), Fault::input,
         "no picture: keys such as 'observation.images.{}' are needed; got the keys {}",
         card.cameras.empty() ? "top" : card.cameras.front(), keys_of(map));
  const bool dotted = map.find("observation.state") || !map.find("state");
  out.state =
      read_row(map, dotted ? "observation.state" : "state", card.state_dim, card.state_dim_min);
}

// vla-eval's form of a compressed picture. Takes its pixels off those that the message may have.
Image read_compressed(const Value& picture, const std::string& key, int64_t& pixels_left) {
  const Value& format = needed(picture, "format", "'png' or 'jpeg'");
  ensure(format.text == "png" || format.text == "jpeg", Fault::input,
         "'{}': the format is '{}', expected 'png' or 'jpeg'", key, escaped(format.text));
  const Value& data = needed(picture, "data", "the picture's bytes");
  ensure(data.kind == Kind::bytes, Fault::input, "'{}': 'data' is {}, expected bytes", key,
         describe(data));
  Image image = decode_image(std::as_bytes(std::span(data.text)), key, pixels_left);
  pixels_left -= int64_t{image.height} * image.width;
  return image;
}

// A benchmark has names of its own for cameras: where one is unknown here, the first picture is
// that of the policy's first camera, and so on, with a warning.
void read_vla_eval(const Value& map, const ModelCard& card, Request& request) {
  const Value& images = needed(map, "images", "a map of pictures");
  ensure(
      images.kind == Kind::map && !images.map.empty() && images.map.size() <= card.cameras.size(),
      Fault::input, "'images' is {} of {}, expected a map of 1 to {} pictures", describe(images),
      images.map.size(), card.cameras.size());
  const auto known = [&](const msgpack::Entry& picture) {
    return std::ranges::find(card.cameras, picture.key) != card.cameras.end();
  };
  const bool by_name = std::ranges::all_of(images.map, known);
  if (!by_name)
    request.warnings.push_back(
        fmt::format("the pictures {} are not named as the cameras {}: taken in this order",
                    keys_of(images), quoted_names(card.cameras)));
  Observation& out = request.observation;
  int64_t pixels_left = kPixelsMax;
  for (size_t i = 0; i < images.map.size(); ++i) {
    const auto& [name, bytes_key, picture] = images.map[i];
    const std::string key = "images/" + escaped(name);
    out.images[by_name ? std::string(name) : card.cameras[i]] =
        picture.find("__image__") ? read_compressed(picture, key, pixels_left)
                                  : read_picture(picture, key);
  }
  out.state =
      read_row(map, map.find("states") ? "states" : "state", card.state_dim, card.state_dim_min);
}

// One overload per type of a field; nil is as good as absent.
struct StrictReader {
  const Value& map;
  const ModelCard& card;

  template <class T, class... Accepted>
  void operator()(std::string_view key, T& to, const Accepted&... accepted) const {
    const Value* value = map.find(key);
    if (value && value->kind != Kind::nil) read(*value, key, to, accepted...);
  }

  static void read(const Value& value, std::string_view key, std::optional<double>& to) {
    to = read_number(value, key);
  }
  template <class Integer>
  void read(const Value& value, std::string_view key, std::optional<Integer>& to,
            const Whole& accepted) const {
    const double number = read_number(value, key);
    const int64_t high = accepted.high.value_or(card.horizon);
    ensure(number == std::floor(number) && number >= static_cast<double>(accepted.low) &&
               number <= static_cast<double>(high),
           Fault::input, "'{}' is {}, expected a whole number from {} to {}", key, number,
           accepted.low, high);
    to = static_cast<Integer>(number);
  }
  static void read(const Value& value, std::string_view key, std::optional<RequestId>& to) {
    const bool whole = value.kind == Kind::integer && !value.above_int64;
    ensure(whole || (value.kind == Kind::text && value.text.size() <= 256), Fault::input,
           "'{}' is {}, expected a text of at most 256 bytes or an integer", key, describe(value));
    to = whole ? RequestId(value.integer) : RequestId(std::string(value.text));
  }
  void read(const Value& value, std::string_view key, ActionChunk& to, Columns columns) const {
    const Array& array = value.array;
    const int64_t dim = columns == Columns::action_dim ? card.action_dim : card.model_action_dim;
    ensure(value.kind == Kind::array && !is_text(array.dtype) && array.shape.size() == 2 &&
               array.shape[1] == dim && array.shape[0] <= card.horizon,
           Fault::input, "'{}' is {}, expected an array of at most {} rows of {} numbers", key,
           describe(value), card.horizon, dim);
    to = {.rows = array.shape[0], .dim = dim, .values = array.numbers()};
    check_finite(to.values, key);
  }
};

[[noreturn]] void fail_in_row(size_t row, const Error& e) {
  fail(e.fault(), "row {} of 'batch': {}", row, e.what());
}

std::vector<uint8_t> bytes_of_floats(const Array& array, std::string_view key) {
  std::vector<uint8_t> bytes(static_cast<size_t>(array.size()));
  for (size_t i = 0; i < bytes.size(); ++i) {
    const double v = array.number(static_cast<int64_t>(i));
    ensure(v >= 0 && v <= 1, Fault::input,
           "'{}' has the value {}: pictures of floats lie in [0, 1]; send uint8 for 0 to 255", key,
           v);
    bytes[i] = static_cast<uint8_t>(255 * v);
  }
  return bytes;
}

}  // namespace

PreviousChunk guidance_by(ActionChunk left, const RemoteOptions& request,
                          std::optional<int64_t> delay, int64_t horizon) {
  if (request.inference_delay) delay = request.inference_delay;
  ensure(delay.has_value(), Fault::input,
         "'inference_delay' is missing: with a previous chunk the server must know how many "
         "actions will be executed before the reply arrives, or its --control-hz");
  ensure(*delay <= left.rows, Fault::input,
         "'inference_delay' is {}, but only {} actions of the previous chunk are left", *delay,
         left.rows);
  PreviousChunk previous{.actions = std::move(left.values), .dim = left.dim, .delay = *delay};
  previous.execution_horizon =
      request.execution_horizon.value_or(std::min(kExecutionHorizon, horizon));
  // Beyond its end the previous chunk holds its last action: zeros would pull the robot elsewhere.
  previous.rows = std::max(left.rows, previous.execution_horizon);
  const std::vector<double> last(previous.actions.end() - left.dim, previous.actions.end());
  for (int64_t row = left.rows; row < previous.rows; ++row)
    previous.actions.insert(previous.actions.end(), last.begin(), last.end());
  return previous;
}

std::string escaped(std::string_view text) {
  constexpr size_t kShown = 200;
  std::string out;
  for (const char c : text.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte > 0x7e)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  if (text.size() > kShown) out += "...";
  return out;
}

Image read_picture(const Value& value, std::string_view key) {
  const std::string name = escaped(key);
  ensure(value.kind == Kind::array, Fault::input,
         "'{}' is {}, expected a uint8 array [height, width, 3] or [3, height, width]", name,
         describe(value));
  const Array& array = value.array;
  const bool bytes = array.dtype == msgpack::DType::u1;
  ensure(bytes || is_float(array.dtype), Fault::input,
         "'{}' is {}, expected uint8 or floats in [0, 1]", name, describe(value));
  const bool three_axes = array.shape.size() == 3;
  const bool planar = three_axes && array.shape[0] == 3;
  ensure(planar || (three_axes && array.shape[2] == 3), Fault::input,
         "'{}' is {}, expected [height, width, 3] or [3, height, width]", name, describe(value));
  const int64_t height = array.shape[planar ? 1 : 0], width = array.shape[planar ? 2 : 1];
  ensure(height >= 1 && width >= 1 && height <= kPictureSideMax && width <= kPictureSideMax,
         Fault::input, "'{}' has {} x {} pixels, expected 1 to {} each way", name, height, width,
         kPictureSideMax);
  return {.height = static_cast<int>(height),
          .width = static_cast<int>(width),
          .rgb = bytes ? Pixels::view(array.data) : Pixels(bytes_of_floats(array, name)),
          .planar = planar};
}

Envelope read_envelope(const Value& message) {
  ensure(message.kind == Kind::map, Fault::input, "the message is {}, expected a map of keys",
         describe(message));
  Envelope out;
  const Value& seq = needed(message, "seq", "the message's number");
  ensure(seq.kind == Kind::integer && !seq.above_int64, Fault::input,
         "'seq' is {}, expected an integer", describe(seq));
  out.seq = seq.integer;
  out.type = needed(message, "type", "a text").text;
  constexpr std::array<std::string_view, 5> kTypes = {"hello", "observation", "episode_start",
                                                      "episode_end", "error"};
  ensure(std::ranges::find(kTypes, out.type) != kTypes.end(), Fault::input,
         "'type' is '{}', expected one of {}", escaped(out.type), fmt::join(kTypes, ", "));
  out.payload = &needed(message, "payload", "a map");
  ensure(out.payload->kind == Kind::map, Fault::input, "'payload' is {}, expected a map",
         describe(*out.payload));
  return out;
}

Request read_request(const Value& message, const ModelCard& card, Dialect dialect) {
  ensure(message.kind == Kind::map, Fault::input, "the message is {}, expected a map of keys",
         describe(message));
  Request out;
  if (dialect == Dialect::roboarena) {
    const std::optional<std::string> endpoint = read_prompt(message, "endpoint");
    ensure(endpoint == "infer" || endpoint == "reset", Fault::input,
           "'endpoint' is {}, expected 'infer' or 'reset'",
           endpoint ? fmt::format("'{}'", escaped(*endpoint)) : "missing");
    out.reset = endpoint == "reset";
    if (out.reset) return out;
    read_roboarena(message, out.observation);
  } else if (dialect == Dialect::vla_eval) {
    read_vla_eval(message, card, out);
  } else if (card.robot == "aloha") {
    read_aloha(message, card, out.observation);
  } else if (card.robot == "droid") {
    read_pictures(message, robot_named("droid"), out.observation);
    out.observation.state = read_droid_state(message);
  } else if (card.robot == "libero") {
    read_pictures(message, robot_named("libero"), out.observation);
    out.observation.state = read_row(message, "observation/state", card.state_dim);
  } else {
    read_lerobot(message, card, out.observation);
  }
  const char* prompt = dialect == Dialect::vla_eval ? "task_description" : "prompt";
  out.observation.prompt = read_prompt(message, prompt);
  if (!out.observation.prompt) out.observation.prompt = read_prompt(message, "task");
  ensure(out.observation.prompt || card.default_prompt, Fault::input,
         "key '{}' is missing: say what the robot shall do, or start the server with "
         "--default-prompt TEXT; got the keys {}",
         prompt, keys_of(message));
  if (dialect == Dialect::vla_eval) return out;  // other keys are the benchmark's
  const StrictReader read{message, card};
  request_fields(static_cast<RemoteOptions&>(out), read);
  std::optional<int64_t> samples;
  read("num_samples", samples, Whole{1, kRowsMax});
  out.samples = samples.value_or(1);
  ensure(out.samples == 1 || out.noise.rows == 0, Fault::input,
         "'noise' is that of one chunk, and 'num_samples' asks for {}", out.samples);
  return out;
}

Requests read_requests(const Value& message, const ModelCard& card, Dialect dialect) {
  const Value* batch =
      message.kind == Kind::map && dialect == Dialect::openpi ? message.find("batch") : nullptr;
  if (!batch) {
    Requests one{{read_request(message, card, dialect)}};
    one.list = message.find("num_samples") != nullptr;
    return one;
  }
  ensure(batch->kind == Kind::list && !batch->list.empty(), Fault::input,
         "'batch' is {}, expected a list of requests", describe(*batch));
  Requests all{.list = true};
  int64_t chunks = 0;
  for (const Value& row : batch->list) try {
      all.rows.push_back(read_request(row, card, dialect));
      chunks += all.rows.back().samples;
      ensure(chunks <= kRowsMax, Fault::input, "a message may ask for at most {} chunks", kRowsMax);
    } catch (const Error& e) {
      fail_in_row(all.rows.size(), e);
    }
  return all;
}

std::vector<BatchRow> batch_rows(const Requests& requests,
                                 const std::function<InferOptions(const Request&)>& options_of) {
  std::vector<BatchRow> rows;
  for (const Request& request : requests.rows) try {
      const InferOptions options = options_of(request);
      for (int64_t s = 0; s < request.samples; ++s) {
        rows.push_back({&request.observation, options});
        rows.back().options.seed += static_cast<uint64_t>(s);
      }
    } catch (const Error& e) {
      if (requests.rows.size() == 1) throw;
      fail_in_row(static_cast<size_t>(&request - requests.rows.data()), e);
    }
  return rows;
}

}  // namespace tendon
