#include "serve/reply.h"

#include <array>
#include <span>
#include <utility>
#include <vector>

#include "serve/msgpack.h"

namespace tendon {
namespace {

using msgpack::Writer;

// openpi's own metadata hold Python ints where a pose is 0.
void write_python_number(Writer& to, double value) {
  if (value == 0)
    to.integer(0);
  else
    to.number(value);
}

void write_texts(Writer& to, std::string_view key, const std::vector<std::string>& texts) {
  to.text(key);
  to.list(std::ssize(texts));
  for (const std::string& text : texts) to.text(text);
}

void write_roboarena_greeting(Writer& to, const ModelCard& card) {
  to.map(6);
  to.text("image_resolution");
  to.list(2);
  to.integer(224);
  to.integer(224);
  to.text("needs_wrist_camera");
  to.boolean(true);
  to.text("n_external_cameras");
  to.integer(1);
  to.text("needs_stereo_camera");
  to.boolean(false);
  to.text("needs_session_id");
  to.boolean(false);
  to.text("action_space");
  to.text(card.joint_positions ? "joint_position" : "joint_velocity");
}

}  // namespace

std::string write_reply(const Actions& actions, const Request& request, const ReplyTimes& times) {
  const StageTimes& stages = actions.times;
  std::vector<std::pair<std::string_view, double>> numbers = {{"infer_ms", times.infer_ms}};
  if (times.prev_total_ms) numbers.emplace_back("prev_total_ms", *times.prev_total_ms);
  numbers.insert(numbers.end(), {{"queue_ms", times.queue_ms},
                                 {"decode_ms", times.decode_ms},
                                 {"preprocess_ms", stages.preprocess_ms},
                                 {"vision_ms", stages.vision_ms},
                                 {"prefill_ms", stages.prefill_ms},
                                 {"denoise_ms", stages.denoise_ms},
                                 {"postprocess_ms", stages.postprocess_ms}});
  if (times.observation_age_ms)
    numbers.emplace_back("observation_age_ms", *times.observation_age_ms);
  const int64_t counters = 1 + (times.inference_delay ? 1 : 0);

  std::string out;
  out.reserve(actions.values.size() * sizeof(double) + 1024);
  Writer to(out);
  to.map(request.id ? 4 : 3);
  to.text("actions");
  to.array(actions.values, std::array{actions.horizon, actions.dim});
  to.text("policy_timing");
  to.map(1);
  to.text("infer_ms");
  to.number(stages.vision_ms + stages.prefill_ms + stages.denoise_ms);
  to.text("server_timing");
  to.map(std::ssize(numbers) + counters);
  for (const auto& [key, value] : numbers) {
    to.text(key);
    to.number(value);
  }
  to.text("reply_id");
  to.integer(times.reply_id);
  if (times.inference_delay) {
    to.text("inference_delay");
    to.integer(*times.inference_delay);
  }
  if (request.id) {
    to.text("request_id");
    if (request.id->kind == msgpack::Value::Kind::text)
      to.text(request.id->text);
    else
      to.integer(request.id->integer);
  }
  return out;
}

std::string write_bare_actions(const Actions& actions) {
  const std::vector<float> values(actions.values.begin(), actions.values.end());
  const auto bytes = std::as_bytes(std::span(values));
  std::string out;
  Writer(out).array("<f4", std::array{actions.horizon, actions.dim},
                    {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  return out;
}

std::string write_greeting(const ModelCard& card, Dialect dialect) {
  std::string out;
  Writer to(out);
  if (dialect == Dialect::roboarena) {
    write_roboarena_greeting(to, card);
    return out;
  }
  to.map(card.reset_pose.empty() ? 7 : 8);
  if (!card.reset_pose.empty()) {
    to.text("reset_pose");
    to.list(std::ssize(card.reset_pose));
    for (const double joint : card.reset_pose) write_python_number(to, joint);
  }
  to.text("model");
  to.text(card.name);
  to.text("robot");
  to.text(card.robot);
  to.text("action_horizon");
  to.integer(card.horizon);
  write_texts(to, "action_names", card.action_names);
  write_texts(to, "cameras", card.cameras);
  to.text("demo");
  to.boolean(card.demo);
  to.text("server");
  to.text("tendon " + card.version);
  return out;
}

}  // namespace tendon
