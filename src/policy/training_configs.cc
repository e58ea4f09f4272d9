#include "policy/training_configs.h"

#include <algorithm>
#include <array>

#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

// Relative action dims, as runs for relative_mask().
enum class Relative { none, arm6, arm6_twice, arm7 };

struct Row {
  const char* name = nullptr;
  bool pi05 = false;
  int horizon = 0;
  const char* asset = nullptr;
  Robot robot{};
  Relative relative = Relative::none;
  const char* prompt = nullptr;
  int tokens_max = 0;           // 0: 48 or 200
  bool state_in_prompt = true;  // pi0.5 only
  int action_dim = 32;
};

constexpr const char* kCube = "lerobot/aloha_sim_transfer_cube_human";
constexpr const char* kLibero = "physical-intelligence/libero";
constexpr const char* kLunch = "open the tupperware and put the food on the plate";
constexpr Robot kAloha = Robot::aloha, kDroid = Robot::droid;

const std::array<Row, 21> kRows = {{
    {"pi0_aloha", false, 50, "trossen", kAloha, Relative::arm6_twice},
    {"pi05_aloha", true, 50, "trossen", kAloha, Relative::arm6_twice},
    {"pi0_aloha_towel", false, 50, "trossen", kAloha, Relative::arm6_twice, "fold the towel"},
    {"pi0_aloha_tupperware", false, 50, "trossen", kAloha, Relative::arm6_twice, kLunch},
    {"pi0_aloha_pen_uncap", false, 50, "trossen", kAloha, Relative::arm6_twice, "uncap the pen"},
    {"pi05_aloha_pen_uncap", true, 50, "trossen", kAloha, Relative::arm6_twice, "uncap the pen"},
    {"pi0_aloha_sim", false, 50, kCube, kAloha, Relative::none, "Transfer cube"},
    {"pi0_droid", false, 10, "droid", kDroid},
    {"pi05_droid", true, 15, "droid", kDroid},
    {"pi05_full_droid_finetune", true, 16, "droid", kDroid, Relative::arm7},
    {"pi05_droid_finetune", true, 16, "droid", kDroid},
    {"pi05_droid_jointpos_polaris", true, 15, "droid", kDroid, Relative::arm7},
    {"pi0_droid_jointpos_polaris", false, 10, "droid", kDroid, Relative::arm7, nullptr, 100},
    {"pi0_droid_jointpos_100k_polaris", false, 10, "droid", kDroid, Relative::arm7, nullptr, 100},
    {"paligemma_diffusion_droid", false, 10, "droid", kDroid, Relative::none, nullptr, 0, true, 8},
    {"pi0_libero", false, 50, kLibero, Robot::libero, Relative::arm6},
    {"pi0_libero_low_mem_finetune", false, 50, kLibero, Robot::libero, Relative::arm6},
    {"pi05_libero", true, 10, kLibero, Robot::libero, Relative::none, nullptr, 0, false},
    {"debug", false, 50, "fake", Robot::lerobot},
    {"debug_restore", false, 50, "fake", Robot::lerobot},
    {"debug_pi05", true, 50, "fake", Robot::lerobot},
}};

std::vector<bool> mask(Relative relative) {
  static constexpr std::array<int, 4> kRuns = {6, -1, 6, -1};
  static constexpr std::array<int, 2> kSeven = {7, -1};
  if (relative == Relative::arm6) return relative_mask(std::span(kRuns).first(2));
  if (relative == Relative::arm6_twice) return relative_mask(kRuns);
  if (relative == Relative::arm7) return relative_mask(kSeven);
  return {};
}

}  // namespace

std::vector<std::string> training_config_names() {
  std::vector<std::string> names;
  names.reserve(std::size(kRows));
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

TrainingConfig training_config(const std::string& name) {
  const auto* const row = std::ranges::find_if(kRows, [&](const Row& r) { return r.name == name; });
  const std::vector<std::string> names = training_config_names();
  ensure(row != kRows.end() || !name.starts_with("pi0_fast"), Fault::usage,
         "--config {}: pi0-FAST generates tokens, not flows; this engine runs pi0 and pi0.5", name);
  ensure(row != kRows.end(), Fault::usage,
         "--config {}: no such file, and no openpi training config of that name; nearest: '{}'",
         name, nearest(name, names));
  TrainingConfig c{.name = name,
                   .policy = row->pi05 ? PolicyType::pi05 : PolicyType::pi0,
                   .horizon = row->horizon,
                   .asset = row->asset,
                   .robot = row->robot,
                   .relative = mask(row->relative),
                   .state_in_prompt = row->pi05 && row->state_in_prompt,
                   .action_dim = row->action_dim};
  c.tokens_max = row->tokens_max > 0 ? row->tokens_max : row->pi05 ? 200 : 48;
  if (row->prompt) c.default_prompt = row->prompt;
  return c;
}

}  // namespace tendon
