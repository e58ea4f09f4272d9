// config.json against tensors, processors and itself.
#include <algorithm>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "policy/processors.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int64_t kStepsMax = 1000;    // of InferOptions
constexpr int64_t kRowsMax = 1 << 20;  // of Config::horizon

// One key of config.json at a time; where it is absent, `otherwise` holds.
struct Keys {
  const json& config;
  const std::string& file;
  Report& r;

  void in_range(const std::string& key, int64_t otherwise, int64_t least, int64_t most,
                const std::string& why) const {
    r.attempt("config." + key, key, [&] {
      const int64_t v = config.contains(key) ? json_int(config, key, file) : otherwise;
      const std::string range =
          least == most ? std::to_string(least) : fmt::format("{} to {}", least, most);
      ensure(v >= least && v <= most, Fault::checkpoint, "{}: {} is {}, expected {}: {}", file, key,
             v, range, why);
    });
  }
  void one_of(const std::string& key, const std::string& otherwise,
              const std::vector<std::string>& known, const std::string& why) const {
    r.attempt("config." + key, key, [&] {
      const std::string value = config.contains(key) ? json_string(config, key, file) : otherwise;
      ensure(std::ranges::find(known, value) != known.end(), Fault::checkpoint,
             "{}: {} is '{}', expected {}: {}", file, key, value, fmt::join(known, " or "), why);
    });
  }
};

int64_t feature_size(const json& config, const char* list, const std::string& name) {
  for (const Feature& f : features(config, list))
    if (f.name == name) return f.size;
  return 1;
}

// Cameras that the preprocessor knows must be those of the policy.
void check_cameras(const Examined& m, Report& r) {
  std::vector<std::string> cameras;
  for (const Feature& f : features(m.config, "input_features"))
    if (f.type == "VISUAL") cameras.push_back(camera_name(f.name));
  const fs::path file = m.folder / "policy_preprocessor.json";
  if (!is_file(file)) return;  // the engine says so
  const auto known = [&](const std::string& key) {
    const std::string camera = camera_name(key);
    if (std::ranges::find(cameras, camera) == cameras.end() && !camera.starts_with("empty_camera"))
      r.error("config.camera", camera,
              "{}: camera '{}' is none of input_features in {}; nearest: '{}'", file.string(),
              camera, m.config_file, nearest(camera, cameras));
  };
  for (const json& step : read_json(file).value("steps", json::array())) {
    const json config = step.value("config", json::object());
    const json rename = config.value("rename_map", json::object());
    for (const auto& [from, to] : rename.items())
      if (to.get<std::string>().starts_with("observation.images.")) known(to);
    for (const Feature& f : features(config, "features"))
      if (f.type == "VISUAL") known(f.name);
  }
}

void check_lerobot(const Examined& m, Report& r) {
  const json& c = m.config;
  const Keys keys{c, m.config_file, r};
  const std::vector<std::string> types = {"pi0", "pi05"};
  keys.one_of("type", "", m.sizes ? std::vector{std::string(name(m.sizes->policy))} : types,
              "the model whose tensors these are");
  keys.one_of("dtype", "float32", {"float32", "bfloat16"}, "what lerobot trains in");
  const Config usual = m.sizes.value_or(Config{});
  keys.in_range("chunk_size", usual.horizon, 1, kRowsMax, "rows of an action chunk");
  const json rows = c.value("chunk_size", json(usual.horizon));
  const int64_t chunk = rows.is_number_integer() ? rows.get<int64_t>() : kRowsMax;
  keys.in_range("n_action_steps", 1, 1, std::max<int64_t>(chunk, 1),
                "executed rows come out of the chunk_size rows of a chunk");
  keys.in_range("num_inference_steps", usual.num_steps, 1, kStepsMax, "Euler steps");
  const int64_t state = feature_size(c, "input_features", "observation.state");
  const int64_t action = feature_size(c, "output_features", "action");
  if (!m.pi05())  // whose state goes into the prompt, however long
    keys.in_range("max_state_dim", usual.state_dim, std::max(state, m.sizes ? usual.state_dim : 1),
                  m.sizes ? usual.state_dim : 4096,
                  fmt::format("the state feature has {} values and the tensors take {}", state,
                              usual.state_dim));
  keys.in_range("max_action_dim", usual.action_dim,
                std::max(action, m.sizes ? usual.action_dim : 1), m.sizes ? usual.action_dim : 4096,
                fmt::format("the action feature has {} values and the tensors give {}", action,
                            usual.action_dim));
  if (m.sizes && c.contains("image_resolution"))
    r.attempt("config.image_resolution", "image_resolution", [&] {
      const json side = m.sizes->vision.image;
      ensure(c.at("image_resolution") == json::array({side, side}), Fault::checkpoint,
             "{}: image_resolution is {}, but position_embedding.weight has {} rows of patches of "
             "{} pixels: {} pixels a side",
             m.config_file, c.at("image_resolution").dump(), m.sizes->vision.tokens(),
             m.sizes->vision.patch, side.dump());
    });
  r.attempt("config.camera", "policy_preprocessor.json", [&] { check_cameras(m, r); });
}

}  // namespace

std::vector<Feature> features(const json& owner, const char* list) {
  std::vector<Feature> all;
  const json object = owner.value(list, json::object());
  for (const auto& [name, f] : object.items()) {
    const json shape = f.value("shape", json());
    const bool sized = shape.is_array() && !shape.empty() && shape[0].is_number_integer();
    all.push_back({name, f.value("type", ""), sized ? shape[0].get<int64_t>() : 0});
  }
  return all;
}

void check_configuration(const Examined& m, Report& r) {
  if (m.layout == "lerobot" && !is_file(m.config_file))
    r.error("config.missing", "config.json", "{} is missing; copy it from the source",
            m.config_file);
  if (m.layout == "lerobot" && !m.config.empty())
    r.attempt("config.unreadable", "config.json", [&] { check_lerobot(m, r); });
  if (m.layout != "openpi") return;
  const Keys keys{m.config, m.config_file, r};
  if (m.sizes)
    keys.in_range("action_dim", m.sizes->action_dim, m.sizes->action_dim, m.sizes->action_dim,
                  "columns of action_in_proj.weight");
  keys.in_range("action_horizon", Config{}.horizon, 1, kRowsMax, "rows of an action chunk");
  keys.one_of("precision", "float32", {"float32", "bfloat16"}, "what openpi trains in");
}

}  // namespace tendon
