#include "serve/model_card.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "checkpoint/content_hash.h"
#include "policy/open_model.h"
#include "tendon/opened.h"
#include "tendon/tendon.h"
#include "tensor/stop_watch.h"

namespace tendon {
namespace {

constexpr int kPictureSide = 224;

// Grey pictures of the size that clients send, zeros as state.
Observation empty_scene(const PolicySpec& spec) {
  Observation scene;
  const size_t bytes = size_t{3} * kPictureSide * kPictureSide;
  for (const std::string& camera : robot_cameras(spec))
    scene.images[camera] = {kPictureSide, kPictureSide, std::vector<uint8_t>(bytes, 128)};
  scene.prompt = spec.default_prompt.value_or("warm up");
  scene.state.assign(static_cast<size_t>(spec.state_dim), 0.0);
  return scene;
}

}  // namespace

ModelCard model_card(const std::string& model, Engine& engine) {
  const OpenedEngine& opened = OpenedEngine::of(engine);
  const PolicySpec& spec = opened.policy->spec();
  const Config& config = opened.policy->config();
  ModelCard card;
  const bool generated = is_demo(model) || model.starts_with("synthetic:");
  card.model = generated ? model : std::filesystem::path(model).filename().string();
  if (card.model.empty())
    card.model = std::filesystem::path(model).parent_path().filename().string();
  card.backend = engine.backend();
  card.method = engine.method();
  card.version = version();
  card.server = "tendon " + card.version;
  card.robot = spec.robot;
  card.cameras = engine.cameras();
  card.other_cameras = spec.slots;
  for (const auto& [camera, slot] : spec.cameras) card.other_cameras.push_back(camera);
  card.action_names = engine.action_names();
  card.horizon = config.horizon;
  card.action_dim = spec.action_dim;
  card.state_dim = spec.state_dim;
  card.state_dim_min = spec.state_dim_min;
  card.model_action_dim = config.action_dim;
  card.steps = config.num_steps;
  card.demo = generated;
  card.default_prompt = spec.default_prompt.has_value();
  card.joint_positions = find<DeltaActions>(spec.transforms) != nullptr;
  card.reset_pose = spec.reset_pose;
  card.notes = engine.notes();
  card.load_ms = engine.load_ms();
  return card;
}

ServedPolicy open_served(const std::string& model, OpenOptions options, const Opening& opening) {
  options.progress = [shown = options.progress, loading = opening.loading](const LoadProgress& p) {
    if (loading) loading(p);
    if (shown) shown(p);
  };
  const auto engine = std::make_shared<Engine>(Engine::open(model, options));
  ServedPolicy served;
  served.card = model_card(model, *engine);
  if (opening.warming) opening.warming();
  StopWatch watch;
  const Actions warm = engine->infer(empty_scene(OpenedEngine::of(*engine).policy->spec()));
  served.card.warm_up_ms = watch.lap_ms();
  served.card.action_ranges = !warm.low.empty();
  served.card.fingerprint =
      fmt::format("{:016x}", content_hash(std::as_bytes(std::span(warm.values))));
  served.infer = [engine](std::span<const BatchRow> rows) { return engine->infer_batch(rows); };
  return served;
}

}  // namespace tendon
