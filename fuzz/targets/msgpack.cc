// A robot's message: decoded, then read as an observation of each robot in every dialect.
#include "client/msgpack.h"

#include "../target.h"
#include "serve/request.h"

using namespace tendon;

namespace {

ModelCard card(std::string robot, std::vector<std::string> cameras, int64_t state, int64_t action) {
  ModelCard card{{.robot = std::move(robot), .horizon = 50, .cameras = std::move(cameras)}};
  card.action_dim = action;
  card.state_dim = state;
  card.model_action_dim = 32;
  card.steps = 10;
  return card;
}

const std::vector<ModelCard>& cards() {
  static const std::vector<ModelCard> all = {
      card("aloha", {"cam_high", "cam_left_wrist", "cam_right_wrist"}, 14, 14),
      card("droid", {"exterior_image_1_left", "wrist_image_left"}, 8, 8),
      card("libero", {"image", "wrist_image"}, 8, 7), card("lerobot", {"top"}, 6, 6)};
  return all;
}

void look_at(const msgpack::Value& value, std::span<const uint8_t> message) {
  msgpack::describe(value);
  msgpack::plain_number(value);
  escaped(value.text);
  const std::span<const uint8_t> data = value.array.data;
  if (value.kind == msgpack::Value::Kind::array)
    fuzz::require(value.array.size() * value.array.item_bytes == std::ssize(data));
  if (!data.empty())
    fuzz::require(data.data() >= message.data() &&
                  data.data() + data.size() <= message.data() + message.size());
  if (value.kind == msgpack::Value::Kind::array && value.array.size() > 0) {
    const int64_t last = value.array.size() - 1;
    if (is_text(value.array.dtype))
      fuzz::taken({Fault::input}, [&] { value.array.text(last); });
    else
      value.array.number(last);
  }
  for (const msgpack::Value& item : value.list) look_at(item, message);
  for (const msgpack::Entry& entry : value.map) look_at(entry.value, message);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> message(data, data + size);
  msgpack::Value value;
  if (!fuzz::taken({Fault::input}, [&] { value = msgpack::decode(message); })) return 0;
  look_at(value, message);
  for (const ModelCard& robot : cards())
    for (const Dialect dialect : {Dialect::openpi, Dialect::roboarena})
      fuzz::taken({Fault::input}, [&] { read_request(value, robot, dialect); });
  fuzz::taken({Fault::input}, [&] {
    const Envelope envelope = read_envelope(value);
    for (const ModelCard& robot : cards())
      fuzz::taken({Fault::input},
                  [&] { read_request(*envelope.payload, robot, Dialect::vla_eval); });
  });
  return 0;
}
