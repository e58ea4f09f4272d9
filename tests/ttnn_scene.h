// What a policy on a ttnn device sees in tests.
#pragma once

#include <string>

#include "policy/images.h"
#include "tendon/embedded.h"
#include "tendon/opened.h"

namespace tendon {

// One picture for every camera of the policy. `fitting`: of the model's size.
inline Observation scene(const OpenedEngine& engine, const std::string& prompt,
                         bool fitting = false) {
  const PolicySpec& spec = engine.policy->spec();
  const auto side = static_cast<int>(engine.policy->config().vision.image);
  Observation o = aloha_observation();
  Image image = o.images.begin()->second;
  if (fitting) image = PilResizer().resize_with_pad(image, side, side);
  o.images.clear();
  for (const std::string& camera : robot_cameras(spec)) o.images[camera] = image;
  o.prompt = prompt;
  o.state.assign(static_cast<size_t>(spec.state_dim), 0.1);
  return o;
}

}  // namespace tendon
