// Every size of a pi0 or pi0.5 model. The defaults are the published full-size models.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
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

// The published full-size model of either kind (max_token_len 48 or 200).
Config full_size(PolicyType type);

// FLOPs (2 per multiply-add) of one call that skips nothing: every camera, every token slot, the
// whole last layer, the state token and everything that depends on time alone in each of `steps`.
int64_t dense_flops(const Config& config, int64_t steps);

// Throws Error(Fault::checkpoint) naming the field when sizes contradict each other or are out of
// range (all sizes 1 to 2^20, heads divide widths, both towers share depth, heads and head_dim).
void check(const Config& config);

// Sizes from a JSON file (`--config FILE`, or tendon.json beside a checkpoint).
// Keys: policy ("pi0" or "pi05"), vision {image, patch, width, heads, mlp, depth}, vlm {width, mlp,
// heads, kv_heads, head_dim, depth, vocab}, expert {the same without vocab}, action_dim, state_dim,
// horizon, num_steps, max_token_len, cameras, min_period, max_period. What is missing keeps the
// value of `base` (or of the full-size model); "robot" is another reader's. An unknown key is an
// Error(Fault::usage) with the nearest known one, unless the file says "format": "tendon-golden-1",
// which has more keys.
Config read_config(const nlohmann::json& json, const std::string& file,
                   const std::optional<Config>& base = {});

// All of it, in the same form.
nlohmann::json config_json(const Config& config);

}  // namespace tendon
