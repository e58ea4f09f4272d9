#include "model/config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

// Far beyond every published model, and small enough that no product of them overflows.
constexpr int64_t kSizeMax = 1 << 20, kHeadsMax = 1 << 10, kHeadDimMax = 1 << 12,
                  kDepthMax = 1 << 8, kImageMax = 1 << 13, kVisionTokensMax = 1 << 16,
                  kCamerasMax = 1 << 6, kStepsMax = 1 << 10;

// One size by its key: "vision" "width"; sizes of the whole model have no tower.
struct Size {
  std::string tower, name;
  int64_t* value;
  int64_t most;

  std::string key() const { return tower.empty() ? name : tower + "." + name; }
};

std::vector<Size> sizes(Config& c) {
  std::vector<Size> all = {{"vision", "image", &c.vision.image, kImageMax},
                           {"vision", "patch", &c.vision.patch, kImageMax},
                           {"vision", "width", &c.vision.width, kSizeMax},
                           {"vision", "heads", &c.vision.heads, kHeadsMax},
                           {"vision", "mlp", &c.vision.mlp, kSizeMax},
                           {"vision", "depth", &c.vision.depth, kDepthMax},
                           {"vlm", "vocab", &c.vocab, kSizeMax},
                           {"", "action_dim", &c.action_dim, kSizeMax},
                           {"", "state_dim", &c.state_dim, kSizeMax},
                           {"", "horizon", &c.horizon, kSizeMax},
                           {"", "max_token_len", &c.max_token_len, kSizeMax},
                           {"", "num_steps", &c.num_steps, kStepsMax},
                           {"", "cameras", &c.cameras, kCamerasMax}};
  for (const auto& [tower, g] : {std::pair("vlm", &c.vlm), {"expert", &c.expert}})
    all.insert(all.end(), {{tower, "width", &g->width, kSizeMax},
                           {tower, "mlp", &g->mlp, kSizeMax},
                           {tower, "heads", &g->heads, kHeadsMax},
                           {tower, "kv_heads", &g->kv_heads, kHeadsMax},
                           {tower, "head_dim", &g->head_dim, kHeadDimMax},
                           {tower, "depth", &g->depth, kDepthMax}});
  return all;
}

void check_size(std::string_view field, int64_t value, int64_t most) {
  ensure(value >= 1 && value <= most, Fault::checkpoint,
         "configuration: {} is {}, expected 1 to {}", field, value, most);
}

void check_gemma(std::string_view tower, const GemmaConfig& c) {
  ensure(c.heads % c.kv_heads == 0 && c.head_dim % 2 == 0, Fault::checkpoint,
         "configuration: {}.heads {} must be a multiple of kv_heads {}, head_dim {} must be even",
         tower, c.heads, c.kv_heads, c.head_dim);
}

// One Gemma tower: `rows` new tokens that attend to `keys` in all.
int64_t gemma_flops(const GemmaConfig& g, int64_t rows, int64_t keys) {
  const int64_t q = g.heads * g.head_dim, kv = g.kv_heads * g.head_dim;
  const int64_t weights = g.width * (q + 2 * kv) + q * g.width + 3 * g.width * g.mlp;
  return g.depth * (2 * rows * weights + 4 * rows * keys * q);
}

// The member `key`, which is of the right type where `good`.
template <class T>
T member(const nlohmann::json& json, const std::string& key, const std::string& file, bool good,
         const char* expected) {
  if (!good)
    fail(Fault::usage, "{}: '{}' is {}, expected {}", file, key, json.at(key).dump().substr(0, 60),
         expected);
  return json.at(key).get<T>();
}

// Reads the sizes of one tower, or ("") of the whole model; keys that are neither these nor `known`
// are errors.
void read_sizes(const nlohmann::json& json, const std::string& file, Config& config,
                const std::string& tower, std::vector<std::string> known = {}) {
  ensure(json.is_object(), Fault::usage, "{}: expected an object, got {}", file, json.type_name());
  for (const Size& s : sizes(config)) {
    if (s.tower != tower) continue;
    known.push_back(s.name);
    if (!json.contains(s.name)) continue;
    *s.value =
        member<int64_t>(json, s.name, file, json.at(s.name).is_number_integer(), "an integer");
  }
  for (const auto& [key, value] : json.items())
    ensure(std::ranges::find(known, key) != known.end(), Fault::usage,
           "{}: unknown key '{}'; nearest: '{}'", file, key, nearest(key, known));
}

}  // namespace

std::string_view name(PolicyType type) { return type == PolicyType::pi05 ? "pi05" : "pi0"; }

Config full_size(PolicyType type) {
  Config c{.policy = type};
  if (type == PolicyType::pi05) c.max_token_len = 200;
  return c;
}

void check(const Config& c) {
  Config copy = c;
  for (const Size& s : sizes(copy)) check_size(s.key(), *s.value, s.most);
  check_gemma("vlm", c.vlm);
  check_gemma("expert", c.expert);
  ensure(c.vision.image % c.vision.patch == 0, Fault::checkpoint,
         "configuration: vision.image {} is no multiple of vision.patch {}", c.vision.image,
         c.vision.patch);
  check_size("vision tokens", c.vision.tokens(), kVisionTokensMax);
  ensure(c.vision.width % c.vision.heads == 0, Fault::checkpoint,
         "configuration: vision.width {} is no multiple of vision.heads {}", c.vision.width,
         c.vision.heads);
  ensure(c.expert.width % 2 == 0, Fault::checkpoint,
         "configuration: expert.width {} must be even (sines and cosines)", c.expert.width);
  ensure(c.vlm.depth == c.expert.depth && c.vlm.heads == c.expert.heads &&
             c.vlm.kv_heads == c.expert.kv_heads && c.vlm.head_dim == c.expert.head_dim,
         Fault::checkpoint,
         "configuration: vlm and expert must share depth, heads, kv_heads and head_dim; got "
         "{}, {}, {}, {} and {}, {}, {}, {}",
         c.vlm.depth, c.vlm.heads, c.vlm.kv_heads, c.vlm.head_dim, c.expert.depth, c.expert.heads,
         c.expert.kv_heads, c.expert.head_dim);
  ensure(c.min_period > 0 && c.max_period >= c.min_period && c.max_period < 1e9, Fault::checkpoint,
         "configuration: periods {} to {} of the time embedding", c.min_period, c.max_period);
}

int64_t dense_flops(const Config& c, int64_t steps) {
  const VisionConfig& v = c.vision;
  const int64_t n = v.tokens(), width = c.expert.width;
  const int64_t block = 4 * v.width * v.width + 2 * v.width * v.mlp;
  const int64_t image = 2 * n *
                        (v.patch_values() * v.width + v.depth * block + v.width * c.vlm.width +
                         2 * v.depth * n * v.width);
  const int64_t prefix = c.cameras * n + c.max_token_len;
  const int64_t suffix = c.horizon + (c.pi05() ? 0 : 1);
  int64_t around = 2 * c.horizon * c.action_dim * width;  // actions in and out
  around += c.pi05() ? 2 * width * width + (2 * c.expert.depth + 1) * 3 * width * width
                     : c.state_dim * width + 3 * c.horizon * width * width;
  return c.cameras * image + gemma_flops(c.vlm, prefix, prefix) +
         steps * (2 * around + gemma_flops(c.expert, suffix, prefix + suffix));
}

Config read_config(const nlohmann::json& json, const std::string& file,
                   const std::optional<Config>& base) {
  const bool golden = json.contains("format") && json.at("format") == "tendon-golden-1";
  Config c = base.value_or(Config{});
  if (json.contains("policy")) {
    const auto policy =
        member<std::string>(json, "policy", file, json.at("policy").is_string(), "a string");
    ensure(policy == "pi0" || policy == "pi05", Fault::usage,
           "{}: policy is '{}', expected 'pi0' or 'pi05'", file, policy);
    const PolicyType type = policy == "pi05" ? PolicyType::pi05 : PolicyType::pi0;
    if (!base) c = full_size(type);
    ensure(c.policy == type, Fault::usage, "{}: policy is '{}' but the model is '{}'", file, policy,
           name(c.policy));
  }
  std::vector<std::string> others = {"format", "policy",     "vision",     "vlm",
                                     "expert", "min_period", "max_period", "robot"};
  if (golden)  // says more than sizes
    for (const auto& [key, value] : json.items()) others.push_back(key);
  read_sizes(json, file, c, "", others);
  for (const char* tower : {"vision", "vlm", "expert"})
    if (json.contains(tower))
      read_sizes(json.at(tower), fmt::format("{}: {}", file, tower), c, tower);
  for (const auto& [key, place] :
       {std::pair("min_period", &c.min_period), {"max_period", &c.max_period}})
    if (json.contains(key))
      *place = member<double>(json, key, file, json.at(key).is_number(), "a number");
  check(c);
  return c;
}

nlohmann::json config_json(const Config& c) {
  nlohmann::json json{
      {"policy", name(c.policy)}, {"min_period", c.min_period}, {"max_period", c.max_period}};
  Config copy = c;
  for (const Size& s : sizes(copy)) (s.tower.empty() ? json : json[s.tower])[s.name] = *s.value;
  return json;
}

}  // namespace tendon
