#include "tendon/embedded.h"

#include <algorithm>
#include <span>

#include "demo/picture.h"
#include "policy/images.h"
#include "policy/open_model.h"
#include "tensor/embed.h"

TENDON_EMBED(std::byte, tendon_cam_high, TENDON_ASSETS "/aloha/cam_high.png");
TENDON_EMBED(std::byte, tendon_cam_left_wrist, TENDON_ASSETS "/aloha/cam_left_wrist.png");
TENDON_EMBED(std::byte, tendon_cam_right_wrist, TENDON_ASSETS "/aloha/cam_right_wrist.png");

namespace tendon {

Observation aloha_observation() {
  Observation o;
  const auto add = [&o](const char* camera, const std::byte* file, const std::byte* end) {
    o.images[camera] = decode_image({file, end}, camera);
  };
  add("cam_high", tendon_cam_high, tendon_cam_high_end);
  add("cam_left_wrist", tendon_cam_left_wrist, tendon_cam_left_wrist_end);
  add("cam_right_wrist", tendon_cam_right_wrist, tendon_cam_right_wrist_end);
  o.prompt = "Transfer cube";
  o.state = {0.29484686497046386, -0.7392478199570842,    0.9702342340480522,
             0.14490311913210016, -0.0039014867386427416, -0.20058461581892298,
             0.5800194619408813,  -0.2445000923975586,    -0.690664088080007,
             0.9218506484234982,  -0.10072357600999857,   0.04400401519853834,
             0.25076175938960704, 0.6536442782275202};
  return o;
}

Observation demo_observation() {
  demo::Random random(1);
  const demo::Episode episode = demo::new_episode(random, demo::Verb::reach, demo::Pairs::seen);
  return demo::observe(episode.world, episode.task.prompt());
}

std::optional<Observation> observation_for(const std::string& model, const Engine& engine,
                                           bool any) {
  if (!any && !is_demo(model) && !model.starts_with("synthetic:")) return {};
  Observation own = is_demo(model) ? demo_observation() : aloha_observation();
  const std::vector<std::string> cameras = engine.cameras();
  std::map<std::string, Image> images;
  for (auto& [name, image] : own.images) {
    const bool known = std::ranges::find(cameras, name) != cameras.end();
    if (images.size() < cameras.size())
      images[known ? name : cameras[images.size()]] = std::move(image);
  }
  own.images = std::move(images);
  own.state.resize(static_cast<size_t>(engine.state_dim()), 0.0);
  return own;
}

}  // namespace tendon
