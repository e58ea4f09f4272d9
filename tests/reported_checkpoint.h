// Checkpoints that somebody changed, and what tendon must say of them: by every verb, since all of
// them open a model by open_model.
#pragma once

#include <algorithm>

#include "damaged_checkpoint.h"
#include "policy/open_model.h"
#include "tensor/check.h"

namespace tendon {

using Change = std::function<void(Checkpoint&)>;

inline const std::string kVision =
    "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.1.";
inline const std::string kExpert = "paligemma_with_expert.gemma_expert.model.layers.2.";
inline const char* kPre = "policy_preprocessor.json";
inline const char* kPost = "policy_postprocessor.json";

inline OpenedModel opened(const Checkpoint& c) {
  return open_model(c.scratch().path().string(), c.options);
}

inline bool holds(const std::string& text, const std::string& piece) {
  return text.find(piece) != std::string::npos;
}

// Exit code 3 with these words; the health check says the same sentence and calls it unsound.
inline void expect_refused(const std::string& kind, const std::vector<std::string>& pieces,
                           const Change& change) {
  Checkpoint checkpoint(kind);
  change(checkpoint);
  const Error error = refused([&] { opened(checkpoint); });
  EXPECT_EQ(error.fault(), Fault::checkpoint) << error.what();
  for (const std::string& piece : pieces)
    EXPECT_TRUE(holds(error.what(), piece)) << piece << " not in: " << error.what();
  const Health health = checkpoint.health();
  EXPECT_FALSE(health.sound()) << error.what();
  EXPECT_TRUE(std::ranges::any_of(health.findings, [&](const Finding& f) {
    return holds(f.text, pieces.front());
  })) << error.what();
}

// One warning that holds `piece`, or none where it is empty; opened, by the health check, and of a
// converted file.
inline void expect_said(const std::string& kind, const std::string& piece, const Change& change) {
  Checkpoint checkpoint(kind);
  change(checkpoint);
  const auto says = [&](const std::vector<std::string>& warnings, const std::string& who) {
    EXPECT_EQ(warnings.size(), piece.empty() ? 0u : 1u) << kind << " " << who << " " << piece;
    for (const std::string& warning : warnings)
      EXPECT_TRUE(holds(warning, piece)) << piece << " not in: " << warning;
  };
  std::vector<std::string> told;
  checkpoint.options.note = [&](const std::string& note) { told.push_back(note); };
  const OpenedModel model = opened(checkpoint);
  says(model.warnings, "opened");
  EXPECT_NO_THROW(nlohmann::json(model.notes).dump());  // no half of a character
  std::erase_if(told, [](const std::string& note) { return !note.starts_with("warning: "); });
  says(told, "told");
  std::vector<std::string> found;
  for (const Finding& f : checkpoint.health().findings)
    if (f.level != Finding::Level::note) found.push_back(f.text);
  says(found, "health");
  const std::string file = checkpoint.path("packed.safetensors").string();
  convert(checkpoint.scratch().path().string(), file, checkpoint.options);
  says(open_model(file, {}).warnings, "converted");
}

inline Change more(const std::string& file, const std::string& name, const Shape& shape = {2}) {
  return [=](Checkpoint& c) {
    c.tensors(file, [&](std::vector<HostTensor>& all) {
      all.push_back(
          host_tensor(name, shape, std::vector<float>(static_cast<size_t>(shape.count()), 0.5f)));
    });
  };
}

inline Change more_weights(const std::string& name) { return more(Checkpoint::kWeights, name); }

inline Change renamed(const std::string& end, const std::string& to) {
  return [=](Checkpoint& c) {
    c.tensor(c.kWeights, end,
             [&](HostTensor& t) { t.name = t.name.substr(0, t.name.size() - end.size()) + to; });
  };
}

inline Change file(const std::string& name, const std::string& content = "{}") {
  return [=](Checkpoint& c) {
    std::filesystem::create_directories(c.path(name).parent_path());
    c.scratch().write(name, content);
  };
}

inline Change set_key(const std::string& key, const nlohmann::json& value) {
  return [=](Checkpoint& c) { c.edit("config.json", [&](nlohmann::json& j) { j[key] = value; }); };
}

// A key in the configuration of the step, in either file of processors.
inline Change set_step(const std::string& name, const std::string& pointer,
                       const nlohmann::json& value) {
  return [=](Checkpoint& c) {
    for (const char* file : {kPre, kPost})
      c.edit(file, [&](nlohmann::json& j) {
        for (nlohmann::json& step : j["steps"])
          if (step["registry_name"] == name)
            step["config"][nlohmann::json::json_pointer(pointer)] = value;
      });
  };
}

// As lerobot wrote it before 0.5.1.
inline void without_relative_steps(Checkpoint& c) {
  for (const char* file : {kPre, kPost})
    c.edit(file, [](nlohmann::json& j) {
      std::erase_if(j["steps"].get_ref<nlohmann::json::array_t&>(), [](const nlohmann::json& step) {
        return step["registry_name"].get<std::string>().ends_with("_actions_processor");
      });
    });
}

inline Change all(const std::vector<Change>& changes) {
  return [=](Checkpoint& c) {
    for (const Change& change : changes) change(c);
  };
}

// The sizes of the golden case without a key.
inline Change without_size(const std::string& key) {
  return [=](Checkpoint& c) {
    nlohmann::json sizes = read_json(c.options.config);
    sizes.erase(key);
    c.options.config = c.scratch().write("sizes.json", sizes.dump()).string();
  };
}

}  // namespace tendon
