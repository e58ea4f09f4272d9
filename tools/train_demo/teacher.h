// The table's teacher, which the demo policies learn from.
#pragma once

#include <algorithm>
#include <cmath>

#include "demo/world.h"
#include "tensor/check.h"

namespace tendon::demo {

inline constexpr double kStandOff = 0.025;  // between gripper and object before a push
inline constexpr double kPushSpeed = 0.4;
inline constexpr double kGain = 5;  // speed per distance, 1/s

inline Action toward(const World& world, Point goal, double speed, double opening) {
  const Point v = limited(kGain * (goal - world.gripper.at), speed);
  const double w =
      std::clamp(kGain * (opening - world.gripper.opening), -kTopOpeningSpeed, kTopOpeningSpeed);
  return {v.x, v.y, w};
}

// Closes on the way of the last centimetres.
inline double opening_near(double distance) {
  return std::clamp((distance - 0.02) / 0.06, 0.0, 1.0);
}

inline Action expert_push(const World& world, const Object& object, Edge edge) {
  const Point u = direction(edge), off = world.gripper.at - object.at;
  const double along = dot(off, u), side = off.x * -u.y + off.y * u.x;
  const double contact = kObjectRadius + kGripperRadius;
  if (to_edge(object.at, edge) < kAtEdge / 2) return {0, 0, 0};
  if (world.gripper.down() && std::abs(side) < 0.05 && along < -0.8 * contact) {
    // Along the line and towards its middle; the last part slowly.
    const double speed = std::min(kPushSpeed, kGain * to_edge(object.at, edge));
    const double back = -0.5 * kGain * side;
    const Point v = limited({u.x * speed - u.y * back, u.y * speed + u.x * back}, kTopSpeed);
    return {v.x, v.y, std::max(-kTopOpeningSpeed, -kGain * world.gripper.opening)};
  }
  const Point behind = object.at - (contact + kStandOff) * u;
  return toward(world, behind, kTopSpeed, opening_near(length(behind - world.gripper.at)));
}

// What a good teacher does: a function of what can be seen, without memory. Comes to rest when the
// task is solved.
inline Action expert(const World& world, const Task& task) {
  const Object* target = world.find(task.target);
  ensure(target != nullptr, Fault::input, "there is no {} {} on the table",
         name(task.target.colour), name(task.target.shape));
  if (task.verb == Verb::push) return expert_push(world, *target, task.edge);
  return toward(world, target->at, kTopSpeed, opening_near(length(target->at - world.gripper.at)));
}

}  // namespace tendon::demo
