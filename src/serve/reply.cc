#include "serve/reply.h"

#include <array>
#include <span>
#include <vector>
namespace tendon {

std::string write_reply(const Reply& reply) {
  FieldWriter field;
  reply_fields(reply, field);
  return field.map();
}

std::string write_bare_actions(const ActionChunk& actions) {
  const std::vector<float> values(actions.values.begin(), actions.values.end());
  const auto bytes = std::as_bytes(std::span(values));
  std::string out;
  msgpack::Writer(out).array("<f4", std::array{actions.rows, actions.dim},
                             {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  return out;
}

std::string write_greeting(const ModelCard& card, Dialect dialect) {
  FieldWriter field;
  if (dialect == Dialect::roboarena) {
    field("image_resolution", std::vector{224.0, 224.0});
    field("needs_wrist_camera", true);
    field("n_external_cameras", int64_t{1});
    field("needs_stereo_camera", false);
    field("needs_session_id", false);
    field("action_space", std::string(card.joint_positions ? "joint_position" : "joint_velocity"));
    return field.map();
  }
  const RemotePolicy policy{.model = card.name,
                            .robot = card.robot,
                            .server = "tendon " + card.version,
                            .horizon = card.horizon,
                            .action_names = card.action_names,
                            .cameras = card.cameras,
                            .reset_pose = card.reset_pose,
                            .demo = card.demo};
  greeting_fields(policy, field);
  return field.map();
}

}  // namespace tendon
