// A checkpoint with a LoRA adapter of PEFT, and what merging it must give.
#pragma once

#include <cmath>

#include "damaged_checkpoint.h"
#include "tensor/check.h"

namespace tendon {

inline const std::string kExpert = "paligemma_with_expert.gemma_expert.model.layers.2.self_attn.";
inline const std::string kVision =
    "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.1.mlp.";
inline const std::string kPeft = "base_model.model.model.";
inline const char *kAdapter = "adapter_model.safetensors", *kSettings = "adapter_config.json";

// A few digits that look like nothing.
inline std::vector<float> some(int64_t count, int seed) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>(std::sin(1.7 * static_cast<double>(i) + seed) * 0.3));
  return values;
}

inline HostTensor some_tensor(const std::string& name, const Shape& shape, int seed) {
  return host_tensor(name, shape, some(shape.count(), seed));
}

inline void expect_near(const HostTensor& got, const std::vector<double>& wanted,
                        const std::string& what) {
  ASSERT_EQ(static_cast<size_t>(got.shape.count()), wanted.size()) << what;
  double worst = 0;
  for (size_t i = 0; i < wanted.size(); ++i)
    worst = std::max(worst, std::abs(element(got, static_cast<int64_t>(i)) - wanted[i]));
  EXPECT_LE(worst, 1e-6) << what;
}

// A π0 checkpoint in lerobot's layout with an adapter of PEFT beside its weights.
struct Tuned : Checkpoint {
  explicit Tuned(const std::string& kind = "lerobot-pi0") : Checkpoint(kind, "f32") {}

  void save(const nlohmann::json& settings, const Tensors& tensors) const {
    edit("config.json", [](nlohmann::json& j) { j["use_peft"] = true; });
    nlohmann::json config{{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 6}};
    config.update(settings);
    write(kSettings, config.dump());
    write_safetensors(path(kAdapter), tensors);
  }
  HostTensor weight(const std::string& name) const {
    const OpenedModel m = open();
    return m.weights->get(name, m.weights->tensors().at(name).shape);
  }
  // As stored, without an adapter.
  HostTensor stored(const std::string& name) const {
    const auto file = SafetensorsFile::open(path(kWeights));
    const HostTensor* t = file->find(name);
    return t ? *t : *file->find("model." + name);
  }
  std::vector<double> before(const std::string& name) const {
    const std::vector<float> values = values_of(stored(name));
    return {values.begin(), values.end()};
  }
  Shape shape(const std::string& name) const { return stored(name).shape; }
  // Where nothing else is said, "…q_proj" has A of seed 1 and B of seed 2.
  Tensors low_rank(const std::string& module, int64_t rank) const {
    const Shape w = shape(module + ".weight");
    return {some_tensor(kPeft + module + ".lora_A.weight", {rank, w[1]}, 1),
            some_tensor(kPeft + module + ".lora_B.weight", {w[0], rank}, 2)};
  }
  std::vector<double> expected(const std::string& module, int64_t rank, double scale) const {
    std::vector<double> w = before(module + ".weight");
    const int64_t columns = shape(module + ".weight")[1], rows = std::ssize(w) / columns;
    const std::vector<float> a = some(rank * columns, 1), b = some(rows * rank, 2);
    for (int64_t o = 0; o < rows; ++o)
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t l = 0; l < rank; ++l)
          w[static_cast<size_t>(o * columns + i)] +=
              scale * static_cast<double>(b[static_cast<size_t>(o * rank + l)]) *
              static_cast<double>(a[static_cast<size_t>(l * columns + i)]);
    return w;
  }
};

inline Tensors operator+(Tensors all, const Tensors& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

inline const std::string kQuery = kExpert + "q_proj", kValue = kExpert + "v_proj",
                         kUp = kVision + "fc1";

}  // namespace tendon
