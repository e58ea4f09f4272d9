// A copy of a healthy checkpoint folder, and what may be done to it.
#pragma once

#include <functional>

#include "policy/open_model.h"
#include "tendon/tendon.h"
#include "test_files.h"
#include "validate/health.h"

namespace tendon {

using Tensors = std::vector<HostTensor>;

class Checkpoint {
 public:
  explicit Checkpoint(const std::string& kind, const std::string& precision = "")
      : scratch_("checkpoint"), golden_(golden("tiny-checkpoint-" + kind)) {
    std::filesystem::copy(golden_ / "checkpoint", scratch_.path(),
                          std::filesystem::copy_options::recursive);
    options.config = (golden_ / "config.json").string();
    options.tokenizer = test_data("tokenizer/small_tokenizer.json").string();
    options.precision = precision;
    options.threads = 1;
  }

  std::string folder() const { return scratch_.path().string(); }
  std::filesystem::path path(const std::string& file) const { return scratch_.path() / file; }
  std::string write(const std::string& file, const std::string& content) const {
    return scratch_.write(file, content).string();
  }
  OpenedModel open() const { return open_model(folder(), options); }
  Engine engine() const { return Engine::open(folder(), options); }
  Health health() const { return check_health(folder(), options, observations); }
  // The file of `tendon convert`.
  std::string converted() const {
    const std::string file = path("packed.safetensors").string();
    convert(folder(), file, options);
    return file;
  }

  void edit(const std::string& file, const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json content = read_json(path(file));
    change(content);
    write(file, content.dump());
  }

  // Every tensor as F32, changed and written back.
  void tensors(const std::string& file, const std::function<void(Tensors&)>& change) const {
    Tensors all;
    const auto stored = SafetensorsFile::open(path(file));
    for (const HostTensor& t : stored->tensors())
      all.push_back(host_tensor(t.name, t.shape, values_of(t)));
    change(all);
    write_safetensors(path(file), all);
  }

  // What a robot with so many joints sees.
  static Observation scene(size_t joints,
                           const std::vector<std::string>& cameras = {"base_0_rgb"}) {
    Observation seen{.prompt = "pick up the cube", .state = std::vector<double>(joints, 0.25)};
    for (const std::string& camera : cameras)
      seen.images[camera] = {28, 28, std::vector<uint8_t>(size_t{3} * 28 * 28, 90)};
    return seen;
  }
  static HostTensor filled(const std::string& name, const Shape& shape, float value) {
    return host_tensor(name, shape, std::vector<float>(static_cast<size_t>(shape.count()), value));
  }
  static std::vector<float> values_of(const HostTensor& t) {
    std::vector<float> values(static_cast<size_t>(t.shape.count()));
    convert_to_f32(t, values);
    return values;
  }

  static constexpr const char* kWeights = "model.safetensors";
  OpenOptions options;
  std::vector<std::string> observations;

 private:
  Scratch scratch_;
  std::filesystem::path golden_;
};

inline const char* kPre = "policy_preprocessor.json";
inline const char* kPost = "policy_postprocessor.json";
inline const char* kPreState = "policy_preprocessor_step_6_normalizer_processor.safetensors";

using Change = std::function<void(Checkpoint&)>;

inline Change all(const std::vector<Change>& changes) {
  return [=](Checkpoint& c) {
    for (const Change& change : changes) change(c);
  };
}

inline Change edited(const std::string& file, const std::function<void(nlohmann::json&)>& change) {
  return [=](Checkpoint& c) { c.edit(file, change); };
}

inline Change set_key(const std::string& key, const nlohmann::json& value) {
  return edited("config.json", [=](nlohmann::json& j) { j[key] = value; });
}
inline Change without_key(const std::string& key) {
  return edited("config.json", [=](nlohmann::json& j) { j.erase(key); });
}

inline Change more(const std::string& file, const std::string& name, const Shape& shape = {2}) {
  return [=](Checkpoint& c) {
    c.tensors(file, [&](Tensors& all) { all.push_back(Checkpoint::filled(name, shape, 0.5f)); });
  };
}
inline Change more_weights(const std::string& name) { return more(Checkpoint::kWeights, name); }

// The first tensor of this end.
inline Change tensor(const std::string& file, const std::string& end,
                     const std::function<void(HostTensor&)>& change) {
  return [=](Checkpoint& c) {
    c.tensors(file, [&](Tensors& all) {
      for (HostTensor& t : all)
        if (t.name.ends_with(end)) return change(t);
      ADD_FAILURE() << end << " is not there";
    });
  };
}
inline Change value(const std::string& file, const std::string& end, size_t at, float value) {
  return tensor(file, end, [=](HostTensor& t) {
    std::vector<float> values = Checkpoint::values_of(t);
    values.at(at) = value;
    t = host_tensor(t.name, t.shape, values);
  });
}

// Exactly one tensor is.
inline Change erased(const std::string& end, const std::string& file = Checkpoint::kWeights) {
  return [=](Checkpoint& c) {
    c.tensors(file, [&](Tensors& all) {
      const auto ends = [&](const HostTensor& t) { return t.name.ends_with(end); };
      EXPECT_EQ(std::erase_if(all, ends), 1u) << end;
    });
  };
}

// What is wrong, and what is only told.
inline std::vector<std::string> texts(const Health& health,
                                      Finding::Level least = Finding::Level::note) {
  std::vector<std::string> all;
  for (const Finding& f : health.findings)
    if (f.level >= least) all.push_back(f.text);
  return all;
}

}  // namespace tendon
