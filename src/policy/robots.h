// The robots of openpi: how their cameras, joints and grippers become the model's, and back.
// Formulas: openpi's aloha_policy, droid_policy and libero_policy.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tendon {

enum class Robot { lerobot, aloha, droid, libero };
std::string_view name(Robot robot);
// Throws Error(Fault::usage) with the nearest name.
Robot robot_named(const std::string& name);

// What a robot sends and expects. Camera names are without "observation/" or
// "observation.images.".
struct RobotFacts {
  std::map<std::string, std::string> cameras;  // robot's -> model's; "" : accepted, not used
  std::vector<std::string> required_cameras;   // of the robot
  int64_t state_dim = 0, action_dim = 0;       // 0: as the checkpoint says
  std::vector<std::string> action_names;
};
const RobotFacts& facts(Robot robot);

// ALOHA's 14 joints into the space that pi0 was trained in (two joints per arm flipped, grippers
// from travel to angle), in place; and actions back, rows of `dim` >= 14.
void aloha_state_to_pi(std::span<double> state);
void aloha_actions_from_pi(std::span<double> actions, int64_t dim);
// The inverse of aloha_actions_from_pi.
void aloha_actions_to_pi(std::span<double> actions, int64_t dim);

// Adds state[d] to column d of every row where relative[d]. In float where `single`.
void to_absolute(std::span<double> actions, int64_t dim, std::span<const double> state,
                 const std::vector<bool>& relative, bool single);
// The inverse of to_absolute, in double.
void to_relative(std::span<double> actions, int64_t dim, std::span<const double> state,
                 const std::vector<bool>& relative);

// openpi's make_bool_mask(6, -1, 6, -1): six true, one false, ...
std::vector<bool> relative_mask(std::span<const int> runs);

// lerobot: all dims but those whose name contains an excluded word, in any case; without names all.
std::vector<bool> relative_mask(const std::vector<std::string>& action_names,
                                const std::vector<std::string>& excluded, int64_t dim);

}  // namespace tendon
