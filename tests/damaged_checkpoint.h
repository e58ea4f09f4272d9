// A copy of a healthy checkpoint folder, to be damaged.
#pragma once

#include <functional>

#include "tendon/tendon.h"
#include "test_files.h"
#include "validate/health.h"

namespace tendon {

class Checkpoint {
 public:
  explicit Checkpoint(const std::string& kind)
      : scratch_("health"), golden_(golden("tiny-checkpoint-" + kind)) {
    std::filesystem::copy(golden_ / "checkpoint", scratch_.path(),
                          std::filesystem::copy_options::recursive);
    options.config = (golden_ / "config.json").string();
    options.tokenizer = test_data("tokenizer/small_tokenizer.json").string();
  }

  std::filesystem::path path(const std::string& file) const { return scratch_.path() / file; }
  const Scratch& scratch() const { return scratch_; }
  Health health() const { return check_health(scratch_.path().string(), options, observations); }

  void edit(const std::string& file, const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json content = read_json(path(file));
    change(content);
    scratch_.write(file, content.dump());
  }

  // Every tensor as F32, changed and written back.
  void tensors(const std::string& file,
               const std::function<void(std::vector<HostTensor>&)>& change) const {
    const std::string whole = read_whole(path(file));
    const auto owner = std::make_shared<const std::string>(whole);
    std::vector<HostTensor> all;
    const auto stored = SafetensorsFile::from_bytes(owner, std::as_bytes(std::span(*owner)), file);
    for (const HostTensor& t : stored->tensors()) {
      std::vector<float> values(static_cast<size_t>(t.shape.count()));
      convert_to_f32(t, values);
      all.push_back(host_tensor(t.name, t.shape, values));
    }
    change(all);
    write_safetensors(path(file), all);
  }
  void tensor(const std::string& file, const std::string& end,
              const std::function<void(HostTensor&)>& change) const {
    tensors(file, [&](std::vector<HostTensor>& all) {
      for (HostTensor& t : all)
        if (t.name.ends_with(end)) return change(t);
      ADD_FAILURE() << end << " is not there";
    });
  }
  void value(const std::string& file, const std::string& end, size_t at, float value) const {
    tensor(file, end, [&](HostTensor& t) {
      std::vector<float> values(static_cast<size_t>(t.shape.count()));
      convert_to_f32(t, values);
      values.at(at) = value;
      t = host_tensor(t.name, t.shape, values);
    });
  }
  void shape(const std::string& end, const Shape& shape) const {
    tensor(kWeights, end, [&](HostTensor& t) {
      t = host_tensor(t.name, shape, std::vector<float>(static_cast<size_t>(shape.count()), 0.1f));
    });
  }
  void observe(const nlohmann::json& observation) {
    observations.push_back(scratch_.write("observation.json", observation.dump()).string());
  }

  static constexpr const char* kWeights = "model.safetensors";
  OpenOptions options;
  std::vector<std::string> observations;

 private:
  Scratch scratch_;
  std::filesystem::path golden_;
};

}  // namespace tendon
