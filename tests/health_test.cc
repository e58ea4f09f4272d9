// labels: unit
// Healthy checkpoints have no finding; a seeded fault is found and named.
#include "validate/health.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "damaged_checkpoint.h"
#include "tensor/check.h"

using namespace tendon;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const std::string kPaliGemma = "paligemma_with_expert.paligemma.model.";
const std::string kExpert = "paligemma_with_expert.gemma_expert.model.";
const std::string kQuery = kPaliGemma + "language_model.layers.1.self_attn.q_proj.weight";
const std::string kSmallTokenizer = test_data("tokenizer/small_tokenizer.json").string();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::string list(const Health& health) {
  std::string text;
  for (const Finding& f : health.findings)
    text += fmt::format("\n  {} {} [{}] {}", static_cast<int>(f.level), f.check, f.subject, f.text);
  return text;
}

const Finding* find(const Health& health, const std::string& check, const std::string& subject) {
  const auto wanted = [&](const Finding& f) {
    return f.check == check && f.subject.ends_with(subject) && f.level != Finding::Level::note;
  };
  const auto found = std::ranges::find_if(health.findings, wanted);
  return found == health.findings.end() ? nullptr : &*found;
}

struct Seeded {
  const char* kind;
  std::string check, subject;  // the end of the subject
  Change damage;
};

// Finds every fault, names it, and blames nothing else but what the engine says itself.
void expect_found(const std::vector<Seeded>& faults) {
  for (const Seeded& fault : faults) {
    Checkpoint checkpoint(fault.kind);
    fault.damage(checkpoint);
    const Health health = checkpoint.health();
    EXPECT_NE(find(health, fault.check, fault.subject), nullptr)
        << fault.kind << " " << fault.check << " " << fault.subject << list(health);
    for (const Finding& f : health.findings)
      EXPECT_TRUE(f.level == Finding::Level::note || f.check == fault.check)
          << fault.check << " " << fault.subject << list(health);
  }
}

const char* kPreQuantiles = "policy_preprocessor_step_3_normalizer_processor.safetensors";
const char* kPostState = "policy_postprocessor_step_0_unnormalizer_processor.safetensors";
const char* kNormStats = "assets/demo/norm_stats.json";

Change edited_statistics(const std::function<void(json&)>& change) {
  return edited(kNormStats, [=](json& j) { change(j["norm_stats"]); });
}
Change set_statistic(const char* vector, const char* name, size_t d, const json& value) {
  return edited_statistics([=](json& j) { j[vector][name][d] = value; });
}
Change shaped(const std::string& end, const Shape& shape) {
  return tensor(Checkpoint::kWeights, end,
                [=](HostTensor& t) { t = Checkpoint::filled(t.name, shape, 0.1f); });
}
Change removed(const std::string& file) {
  return [=](Checkpoint& c) { fs::remove_all(c.path(file)); };
}
Change rewritten(const std::string& file, const std::function<void(std::string&)>& change) {
  return [=](Checkpoint& c) {
    std::string bytes = read_whole(c.path(file));
    change(bytes);
    c.write(file, bytes);
  };
}
void cut(std::string& bytes) { bytes.resize(bytes.size() / 2); }

}  // namespace

TEST(Health, healthy_folders_have_no_error_and_no_warning) {
  for (const std::string kind : {"lerobot-pi0", "lerobot-pi05", "openpi-pi0", "openpi-pi05"}) {
    Checkpoint checkpoint(kind);
    const Health health = checkpoint.health();
    EXPECT_TRUE(health.sound()) << kind << list(health);
    for (const Finding& f : health.findings)
      EXPECT_EQ(f.level, Finding::Level::note) << kind << list(health);
    EXPECT_GT(health.tensors, 120) << kind;
    EXPECT_GT(health.values, 278000) << kind;
    EXPECT_GT(health.seconds, 0) << kind;
  }
}

TEST(Health, demos_are_read_like_folders_and_synthetic_models_are_not_generated) {
  for (const std::string model : {"demo", "demo:pi05", "synthetic:pi0", "synthetic:pi05"}) {
    const Health health = check_health(model, {}, {});
    EXPECT_TRUE(health.findings.empty()) << model << list(health);
    EXPECT_EQ(health.tensors > 120, model.starts_with("demo")) << model;
  }
  EXPECT_FALSE(check_health("synthetic:pi1", {}, {}).sound());
  EXPECT_FALSE(check_health("no/such/folder", {}, {}).sound());
}

TEST(Health, a_missing_wrong_or_unused_tensor_is_named) {
  const std::string weights = Checkpoint::kWeights;
  const std::string position = "embeddings.position_embedding.weight";
  expect_found({
      {"lerobot-pi0", "tensor.missing", kQuery, erased(kQuery)},
      {"lerobot-pi0", "tensor.missing", "state_proj.weight", erased("state_proj.weight")},
      {"openpi-pi05", "tensor.missing", "time_mlp_in.weight", erased("time_mlp_in.weight")},
      {"openpi-pi0", "tensor.missing", "action_in_proj.weight", erased("action_in_proj.weight")},
      {"openpi-pi0", "tensor.missing", "vision_model.encoder.layers.2.mlp.fc1.bias",
       erased("layers.2.mlp.fc1.bias")},
      {"lerobot-pi0", "tensor.shape", kQuery, shaped(kQuery, {64, 60})},
      {"lerobot-pi0", "tensor.shape", "state_proj.weight", shaped("state_proj.weight", {32, 30})},
      {"openpi-pi0", "tensor.shape", "layers.0.mlp.fc1.weight",
       shaped("layers.0.mlp.fc1.weight", {70, 48})},
      {"openpi-pi05", "tensor.shape", "action_in_proj.weight",
       shaped("action_in_proj.weight", {32, 24})},
      {"openpi-pi0", "tensor.shape", position, shaped(position, {15, 48})},
      {"openpi-pi0", "tensor.names", "", more_weights("model." + kQuery)},
      {"openpi-pi0", "tensor.tower", weights,
       [](Checkpoint& c) {
         c.tensors(c.kWeights, [](Tensors& all) {
           std::erase_if(all, [](const auto& t) { return says(t.name, "layers."); });
         });
       }},
      {"lerobot-pi05", "tensor.unused", "surprise.weight", more_weights("model.surprise.weight")},
      {"openpi-pi0", "tensor.dtype", "action_out_proj.bias",
       tensor(weights, "action_out_proj.bias", [](HostTensor& t) { t.dtype = DType::i32; })},
  });
}

TEST(Health, values_that_are_not_weights_are_found_in_their_tensor) {
  const std::string weights = Checkpoint::kWeights;
  expect_found({
      {"lerobot-pi0", "tensor.nan", kQuery, value(weights, kQuery, 100, kNan)},
      {"openpi-pi05", "tensor.inf", "layers.2.mlp.fc2.bias",
       value(weights, "encoder.layers.2.mlp.fc2.bias", 5, -INFINITY)},
      {"openpi-pi0", "tensor.outlier", kQuery, value(weights, kQuery, 4095, 40.f)},
      {"lerobot-pi05", "tensor.outlier", "time_mlp_out.bias",
       value(weights, "time_mlp_out.bias", 3, 1e30f)},
      {"lerobot-pi0", "tensor.zero", "action_out_proj.weight",
       tensor(weights, "action_out_proj.weight",
              [](HostTensor& t) { t = Checkpoint::filled(t.name, t.shape, 0); })},
  });
  Checkpoint checkpoint("openpi-pi0");
  const std::string table = "paligemma.lm_head.weight";
  for (const size_t at : {30000u, 20000u}) value(checkpoint.kWeights, table, at, kNan)(checkpoint);
  const Health health = checkpoint.health();
  const Finding* nan = find(health, "tensor.nan", table);
  ASSERT_NE(nan, nullptr) << list(health);
  EXPECT_TRUE(says(nan->text, "2 of 32768 values that are NaN, the first at [312, 32]"));
}

TEST(Health, damaged_files_are_named) {
  const auto overlap = [](std::string& bytes) {
    const std::string offsets = "\"data_offsets\":[";
    size_t at = bytes.find(offsets);
    at = bytes.find(offsets, at + 1) + offsets.size();
    bytes[at] = bytes[at] == '1' ? '2' : '1';
  };
  const std::string weights = Checkpoint::kWeights;
  expect_found({
      {"openpi-pi0", "file.damaged", weights, rewritten(weights, cut)},
      {"lerobot-pi0", "file.damaged", weights, rewritten(weights, overlap)},
      {"openpi-pi05", "file.missing", weights, removed(weights)},
      {"openpi-pi0", "file.index", "model.safetensors.index.json",
       [&](Checkpoint& c) {
         removed(weights)(c);
         c.write("model.safetensors.index.json", "{}");
       }},
      {"lerobot-pi0", "statistics.unreadable", kPreState, rewritten(kPreState, cut)},
      {"lerobot-pi05", "statistics.unreadable", kPost, rewritten(kPost, cut)},
      {"openpi-pi0", "config.unreadable", "config.json", rewritten("config.json", cut)},
      {"lerobot-pi05", "config.unreadable", "config.json", rewritten("config.json", cut)},
      {"lerobot-pi05", "config.missing", "config.json", removed("config.json")},
      {"openpi-pi0", "statistics.unreadable", kNormStats, rewritten(kNormStats, cut)},
  });
}

TEST(Health, a_damaged_shard_does_not_hide_the_faults_of_the_others) {
  Checkpoint checkpoint("lerobot-pi0");
  value(checkpoint.kWeights, kQuery, 9, INFINITY)(checkpoint);
  const auto whole = SafetensorsFile::open(checkpoint.path(checkpoint.kWeights));
  json map;
  std::vector<HostTensor> shards[2];
  for (const HostTensor& t : whole->tensors()) {
    const size_t shard = t.name.ends_with(kQuery) ? 1 : 0;
    shards[shard].push_back(t);
    map[t.name] = shard == 0 ? "a.safetensors" : "b.safetensors";
  }
  write_safetensors(checkpoint.path("a.safetensors"), shards[0]);
  write_safetensors(checkpoint.path("b.safetensors"), shards[1]);
  fs::remove(checkpoint.path(checkpoint.kWeights));
  checkpoint.write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  Health health = checkpoint.health();
  EXPECT_EQ(health.tensors, std::ssize(whole->tensors()));
  EXPECT_NE(find(health, "tensor.inf", kQuery), nullptr) << list(health);
  fs::resize_file(checkpoint.path("a.safetensors"), 300000);
  health = checkpoint.health();
  EXPECT_NE(find(health, "file.damaged", "a.safetensors"), nullptr) << list(health);
  EXPECT_NE(find(health, "tensor.inf", kQuery), nullptr) << list(health);
}

TEST(Health, statistics_that_cannot_normalise_are_found_by_dimension) {
  expect_found({
      {"lerobot-pi0", "statistics.nan", "observation.state.mean[3]",
       value(kPreState, "observation.state.mean", 3, kNan)},
      {"lerobot-pi0", "statistics.constant", "observation.state.std[2]",
       value(kPreState, "observation.state.std", 2, 1e-9f)},
      {"lerobot-pi0", "statistics.negative", "action.std[13]",
       value(kPostState, "action.std", 13, -0.5f)},
      {"lerobot-pi05", "statistics.order", "observation.state.q99[0]",
       value(kPreQuantiles, "observation.state.q99", 0, -9.f)},
      {"lerobot-pi05", "statistics.constant", "action.q99[1]",
       [](Checkpoint& c) {
         const auto file = SafetensorsFile::open(c.path(kPostState));
         value(kPostState, "action.q99", 1, element(*file->find("action.q01"), 1))(c);
       }},
      {"openpi-pi0", "statistics.nan", "state.std[4]",
       rewritten(kNormStats,
                 [](std::string& text) {  // as Python writes it
                   text = json::parse(text).dump();
                   size_t from = text.find("\"std\":[", text.find("\"state\"")) + 7;
                   for (int comma = 0; comma < 4; ++comma) from = text.find(',', from) + 1;
                   text.replace(from, text.find(',', from) - from, "NaN");
                 })},
      {"openpi-pi0", "statistics.negative", "actions.std[7]",
       set_statistic("actions", "std", 7, -1.0)},
      {"openpi-pi05", "statistics.order", "actions.q99[0]",
       set_statistic("actions", "q99", 0, -1000.0)},
      {"openpi-pi05", "statistics.constant", "state.q99[1]",
       edited_statistics([](json& j) { j["state"]["q99"][1] = j["state"]["q01"][1]; })},
      {"openpi-pi05", "statistics.missing", "state.q01",
       edited_statistics([](json& j) { j["state"]["q01"] = nullptr; })},
      {"openpi-pi0", "statistics.missing", "actions.mean",
       edited_statistics([](json& j) { j.erase("actions"); })},
      {"openpi-pi0", "statistics.missing", "norm_stats.json", removed("assets")},
  });
}

TEST(Health, statistics_of_another_robot_or_model_are_found) {
  const auto method = [](const char* file, size_t step, const char* kind, const char* value) {
    return edited(file, [=](json& j) { j["steps"][step]["config"]["norm_map"][kind] = value; });
  };
  expect_found({
      {"lerobot-pi0", "statistics.dimension", "observation.state.mean",
       tensor(kPreState, "observation.state.mean",
              [](HostTensor& t) { t = Checkpoint::filled(t.name, {7}, 0.5f); })},
      {"openpi-pi0", "statistics.dimension", "state.std",
       edited_statistics([](json& j) { j["state"]["std"].erase(0); })},
      {"lerobot-pi0", "statistics.method", "STATE", method(kPre, 6, "STATE", "QUANTILES")},
      {"lerobot-pi05", "statistics.method", "ACTION", method(kPost, 0, "ACTION", "MEAN_STD")},
      {"lerobot-pi05", "statistics.missing", "observation.state.q01",
       erased("observation.state.q01", kPreQuantiles)},
  });
}

TEST(Health, a_tokenizer_that_cannot_serve_the_model_is_found) {
  const auto without = [](const std::string& piece) {
    return [piece](Checkpoint& c) {
      json content = read_json(kSmallTokenizer);
      std::erase_if(content["added_tokens"].get_ref<json::array_t&>(),
                    [&](const json& t) { return t["content"] == piece; });
      if (piece == "\n") content["model"]["vocab"].erase(piece);
      c.options.tokenizer = c.write("broken.json", content.dump());
    };
  };
  expect_found({
      {"lerobot-pi0", "tokenizer.missing", "tokenizer",
       [](Checkpoint& c) { c.options.tokenizer.clear(); }},
      {"openpi-pi05", "tokenizer.unreadable", "cut.model",
       [](Checkpoint& c) {
         const std::string whole = read_whole(TENDON_TEST_TOKENIZER);
         c.options.tokenizer = c.write("cut.model", whole.substr(0, 100000));
       }},
      {"lerobot-pi0", "tokenizer.vocabulary", ".model",
       [](Checkpoint& c) { c.options.tokenizer = TENDON_TEST_TOKENIZER; }},
      {"openpi-pi0", "tokenizer.unreadable", "broken.json", without("<bos>")},
      {"openpi-pi0", "tokenizer.newline", "broken.json", without("\n")},
  });
}

TEST(Health, contradictions_of_the_configuration_are_found) {
  const auto camera = edited(kPre, [](json& j) {
    j["steps"][0]["config"]["rename_map"]["observation.images.top"] =
        "observation.images.bse_0_rgb";
  });
  expect_found({
      {"lerobot-pi0", "config.type", "type", set_key("type", "pi05")},
      {"lerobot-pi0", "config.n_action_steps", "n_action_steps", set_key("n_action_steps", 11)},
      {"lerobot-pi0", "config.chunk_size", "chunk_size",
       all({set_key("n_action_steps", 1), set_key("chunk_size", 0)})},
      {"lerobot-pi0", "config.max_state_dim", "max_state_dim", set_key("max_state_dim", 8)},
      {"lerobot-pi05", "config.max_action_dim", "max_action_dim", set_key("max_action_dim", 6)},
      {"lerobot-pi05", "config.num_inference_steps", "num_inference_steps",
       set_key("num_inference_steps", 0)},
      {"lerobot-pi0", "config.dtype", "dtype", set_key("dtype", "flaot32")},
      {"lerobot-pi0", "config.image_resolution", "image_resolution",
       set_key("image_resolution", {224, 224})},
      {"lerobot-pi05", "config.camera", "bse_0_rgb", camera},
      {"openpi-pi0", "config.action_dim", "action_dim", set_key("action_dim", 24)},
      {"openpi-pi05", "config.precision", "precision", set_key("precision", 16)},
      {"openpi-pi0", "config.action_horizon", "action_horizon", set_key("action_horizon", -1)},
  });
}

TEST(Health, observations_of_another_robot_or_in_other_units_are_found_by_dimension) {
  json observation{{"state", json::array()}, {"cameras", {{"base_0_rgb", json::object()}}}};
  const auto statistics = read_json(golden("tiny-checkpoint-openpi-pi0/checkpoint") / kNormStats);
  observation["state"] = statistics["norm_stats"]["state"]["mean"];
  const auto observed = [&](const std::function<void(json&)>& change) {
    return [=](Checkpoint& c) {
      json changed = observation;
      change(changed);
      c.observations.push_back(c.write("observation.json", changed.dump()));
    };
  };
  Checkpoint healthy("openpi-pi0");
  observed([](json&) {})(healthy);
  EXPECT_TRUE(healthy.health().findings.empty()) << list(healthy.health());
  expect_found({
      {"openpi-pi0", "observation.range", "state[6]",
       observed([](json& j) { j["state"][6] = 57.3; })},
      {"openpi-pi05", "observation.range", "state[1]",
       observed([](json& j) { j["state"][1] = -1000.0; })},
      {"openpi-pi0", "observation.dimension", "state",
       observed([](json& j) { j["state"].push_back(0.0); })},
      {"openpi-pi0", "observation.unreadable", "observation.json",
       observed([](json& j) { j["state"][0] = nullptr; })},
      {"openpi-pi0", "observation.camera", "top",
       observed([](json& j) { j["cameras"]["top"] = json::object(); })},
  });
}

TEST(Health, independent_faults_are_found_in_one_pass) {
  Checkpoint checkpoint("lerobot-pi0");
  all({value(checkpoint.kWeights, kQuery, 7, kNan), shaped("action_in_proj.weight", {32, 30}),
       value(kPostState, "action.std", 1, -1.f), set_key("n_action_steps", 50)})(checkpoint);
  checkpoint.options.tokenizer = TENDON_TEST_TOKENIZER;
  const Health health = checkpoint.health();
  for (const auto& [check, subject] : {std::pair("tensor.nan", kQuery.c_str()),
                                       {"tensor.shape", "action_in_proj.weight"},
                                       {"statistics.negative", "action.std[1]"},
                                       {"config.n_action_steps", "n_action_steps"},
                                       {"tokenizer.vocabulary", ".model"}})
    EXPECT_NE(find(health, check, subject), nullptr) << check << list(health);
}
