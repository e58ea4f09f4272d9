// Every size of a pi0 or pi0.5 model. The defaults are the published full-size models.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tendon {

enum class PolicyType { pi0, pi05 };
std::string_view name(PolicyType type);  // "pi0", "pi05"

struct VisionConfig {
  int64_t image = 224, patch = 14;  // pixels per side
  int64_t width = 1152, heads = 16, mlp = 4304, depth = 27;
  int64_t tokens() const { return (image / patch) * (image / patch); }
  int64_t patch_values() const { return 3 * patch * patch; }
};

struct GemmaConfig {
  int64_t width = 2048, mlp = 16384, heads = 8, kv_heads = 1, head_dim = 256, depth = 18;
};

struct Config {
  PolicyType policy = PolicyType::pi0;
  VisionConfig vision;
  GemmaConfig vlm;
  GemmaConfig expert{.width = 1024, .mlp = 4096};
  int64_t vocab = 257152;
  int64_t action_dim = 32, state_dim = 32;   // padded sizes inside the model
  int64_t horizon = 50, max_token_len = 48;  // pi05: 200
  int64_t num_steps = 10, cameras = 3;
  double min_period = 4e-3, max_period = 4.0;  // of the time embedding

  bool pi05() const { return policy == PolicyType::pi05; }
};

// One size by its key: "vision" "width"; sizes of the whole model have no tower.
struct Size {
  std::string tower, name;
  int64_t* value;
  int64_t most;

  std::string key() const { return tower.empty() ? name : tower + "." + name; }
};

// Every size of `config`.
std::vector<Size> sizes(Config& config);

// The published full-size model of either kind (max_token_len 48 or 200).
Config full_size(PolicyType type);

// FLOPs (2 per multiply-add) of one call that skips nothing: every camera, every token slot, the
// whole last layer, the state token and everything that depends on time alone in each of `steps`.
int64_t dense_flops(const Config& config, int64_t steps);

// Throws Error(Fault::checkpoint) naming the field when sizes contradict each other or are out of
// range (all sizes 1 to 2^20, heads divide widths, both towers share depth, heads and head_dim).
void check(const Config& config);

}  // namespace tendon
