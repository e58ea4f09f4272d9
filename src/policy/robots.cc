#include "policy/robots.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

constexpr size_t kAlohaJoints = 14;
constexpr std::array<size_t, 2> kAlohaGrippers = {6, 13};
constexpr std::array<size_t, 4> kAlohaFlipped = {1, 2, 8, 9};

const std::array<std::string, 4> kNames = {"lerobot", "aloha", "droid", "libero"};

// Gripper travel (0 closed, 1 open, of 18.44 to 58 mm) to the angle of its motor, normalised.
double gripper_angle(double travel) {
  const double v = travel * (0.05800 - 0.01844) + 0.01844;
  const double sine = (0.022 * 0.022 + v * v - 0.036 * 0.036) / (2 * 0.022 * v);
  const double angle = std::asin(std::clamp(sine, -1.0, 1.0));
  return (angle - 0.5476) / (1.6296 - 0.5476);
}

double gripper_travel(double action) { return (action + 0.5476 + 0.6213) / (1.4910 + 0.6213); }
double gripper_action(double travel) { return travel * (1.4910 + 0.6213) - 0.5476 - 0.6213; }

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::vector<std::string> aloha_names() {
  std::vector<std::string> names;
  for (const char* arm : {"left_", "right_"})
    for (const char* joint :
         {"waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"})
      names.push_back(std::string(arm) + joint);
  return names;
}

}  // namespace

std::string_view name(Robot robot) { return kNames[static_cast<size_t>(robot)]; }

Robot robot_named(const std::string& name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<Robot>(i);
  fail(Fault::usage, "unknown robot '{}'; nearest: '{}'", name, nearest(name, kNames));
}

const RobotFacts& facts(Robot robot) {
  static const std::array<RobotFacts, 4> all = {
      RobotFacts{},
      RobotFacts{{{"cam_high", "base_0_rgb"},
                  {"cam_left_wrist", "left_wrist_0_rgb"},
                  {"cam_right_wrist", "right_wrist_0_rgb"},
                  {"cam_low", ""}},
                 {"cam_high"},
                 kAlohaJoints,
                 kAlohaJoints,
                 aloha_names()},
      RobotFacts{
          {{"exterior_image_1_left", "base_0_rgb"}, {"wrist_image_left", "left_wrist_0_rgb"}},
          {"exterior_image_1_left", "wrist_image_left"},
          8,
          8,
          {"joint_1", "joint_2", "joint_3", "joint_4", "joint_5", "joint_6", "joint_7", "gripper"}},
      RobotFacts{{{"image", "base_0_rgb"}, {"wrist_image", "left_wrist_0_rgb"}},
                 {"image", "wrist_image"},
                 8,
                 7,
                 {"x", "y", "z", "roll", "pitch", "yaw", "gripper"}}};
  return all[static_cast<size_t>(robot)];
}

void aloha_state_to_pi(std::span<double> state) {
  ensure(state.size() >= kAlohaJoints, Fault::internal, "{} ALOHA joints", state.size());
  for (const size_t j : kAlohaFlipped) state[j] = -state[j];
  for (const size_t g : kAlohaGrippers) state[g] = gripper_angle(state[g]);
}

void aloha_actions_from_pi(std::span<double> actions, int64_t dim) {
  ensure(dim >= static_cast<int64_t>(kAlohaJoints), Fault::internal, "{} ALOHA joints", dim);
  for (size_t row = 0; row < actions.size(); row += static_cast<size_t>(dim)) {
    for (const size_t j : kAlohaFlipped) actions[row + j] = -actions[row + j];
    for (const size_t g : kAlohaGrippers) actions[row + g] = gripper_travel(actions[row + g]);
  }
}

void aloha_actions_to_pi(std::span<double> actions, int64_t dim) {
  ensure(dim >= static_cast<int64_t>(kAlohaJoints), Fault::internal, "{} ALOHA joints", dim);
  for (size_t row = 0; row < actions.size(); row += static_cast<size_t>(dim)) {
    for (const size_t j : kAlohaFlipped) actions[row + j] = -actions[row + j];
    for (const size_t g : kAlohaGrippers) actions[row + g] = gripper_action(actions[row + g]);
  }
}

void to_absolute(std::span<double> actions, int64_t dim, std::span<const double> state,
                 const std::vector<bool>& relative, bool single) {
  for (size_t i = 0; i < actions.size(); ++i) {
    const size_t d = i % static_cast<size_t>(dim);
    if (d >= relative.size() || !relative[d]) continue;
    actions[i] = single ? static_cast<float>(actions[i]) + static_cast<float>(state[d])
                        : actions[i] + state[d];
  }
}

void to_relative(std::span<double> actions, int64_t dim, std::span<const double> state,
                 const std::vector<bool>& relative) {
  std::vector<double> minus(state.begin(), state.end());
  for (double& v : minus) v = -v;
  to_absolute(actions, dim, minus, relative, false);
}

std::vector<bool> relative_mask(std::span<const int> runs) {
  std::vector<bool> mask;
  for (const int run : runs) mask.insert(mask.end(), static_cast<size_t>(std::abs(run)), run > 0);
  return mask;
}

std::vector<bool> relative_mask(const std::vector<std::string>& action_names,
                                const std::vector<std::string>& excluded, int64_t dim) {
  std::vector<bool> mask(static_cast<size_t>(dim), true);
  for (size_t d = 0; d < std::min(mask.size(), action_names.size()); ++d)
    for (const std::string& word : excluded)
      if (lower(action_names[d]).find(lower(word)) != std::string::npos) mask[d] = false;
  return mask;
}

}  // namespace tendon
