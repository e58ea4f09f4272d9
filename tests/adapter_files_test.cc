// labels: unit
// Where an adapter lies and what is said of it: alone, beside weights that may or may not be its
// base, left out; told by all that tell of a model.
#include "tuned_checkpoint.h"

using namespace tendon;
using nlohmann::json;
namespace fs = std::filesystem;

TEST(AdapterFiles, alone_is_merged_into_the_base_that_is_named) {
  const Tuned base;
  Tuned tuned;
  tuned.save({{"base_model_name_or_path", "lerobot/pi0_base"}}, tuned.low_rank(kQuery, 2));
  const std::vector<double> wanted = tuned.expected(kQuery, 2, 3);
  const auto shown = [&] { return tuned.open(); };
  tuned.options.base = base.folder();
  EXPECT_TRUE(refuses(Fault::usage, "has weights of its own", shown));
  fs::remove(tuned.path(tuned.kWeights));
  const auto merged = [&] {
    const OpenedModel m = shown();
    return m.weights->get(kQuery + ".weight", base.shape(kQuery + ".weight"));
  };
  expect_near(merged(), wanted, "alone");
  EXPECT_TRUE(tuned.health().sound());

  tuned.options.base.clear();
  EXPECT_TRUE(refuses(Fault::checkpoint,
                      "--base FOLDER with the weights that it was trained on "
                      "('lerobot/pi0_base')",
                      shown));
  tuned.options.base = "nowhere";
  EXPECT_TRUE(refuses(Fault::usage, "--base nowhere is no folder", shown));
  tuned.options.base = tuned.folder();
  EXPECT_TRUE(refuses(Fault::checkpoint, "merge_and_unload", shown));  // an adapter of an adapter

  // Without a file but PEFT's: a warning, since statistics are the base's.
  for (const auto& entry : fs::directory_iterator(tuned.folder()))
    if (!entry.path().filename().string().starts_with("adapter")) fs::remove_all(entry.path());
  tuned.options.base = base.folder();
  expect_near(merged(), wanted, "alone, without a configuration");
  ASSERT_EQ(shown().warnings.size(), 1u);
  EXPECT_TRUE(says(shown().warnings[0], "which may be another robot's"));

  fs::remove(tuned.path(kAdapter));
  EXPECT_TRUE(refuses(Fault::usage, "has no adapter_model.safetensors", shown));
}

// lerobot runs the weights without a word, PEFT merges, and they may be the merged ones.
TEST(AdapterFiles, beside_complete_weights_that_do_not_name_it_is_asked_about) {
  for (const char* kind : {"lerobot-pi0", "lerobot-pi05", "openpi-pi0"}) {
    Tuned tuned(kind);
    tuned.save(json::object(), tuned.low_rank(kQuery, 2));
    const std::string folder = tuned.folder();
    const auto query = [&] { return tuned.weight(kQuery + ".weight"); };
    const std::vector<double> merged = tuned.expected(kQuery, 2, 3);
    expect_near(query(), merged, "use_peft");
    for (const json& peft : {json(false), json()}) {
      tuned.edit("config.json", [&](json& j) { j["use_peft"] = peft; });
      if (peft.is_null()) tuned.edit("config.json", [](json& j) { j.erase("use_peft"); });
      EXPECT_TRUE(refuses(Fault::checkpoint,
                          {kAdapter, "LoRA", "--base " + folder, "--lora-scale 0"},
                          [&] { tuned.open(); }));
      EXPECT_FALSE(tuned.health().sound());
    }
    tuned.options.base = folder + "/.";
    expect_near(query(), merged, "--base");
    EXPECT_TRUE(tuned.health().sound());
    tuned.options.base.clear();
    tuned.options.lora_scale = 1.5;  // says that it is wanted
    expect_near(query(), tuned.expected(kQuery, 2, 1.5), "--lora-scale 1.5");
  }
}

TEST(AdapterFiles, is_left_out_where_the_scale_that_is_given_is_0) {
  const auto open_as_it_was = [](Tuned& tuned, const std::string& file) {
    tuned.options.lora_scale = 0;
    const OpenedModel m = tuned.open();
    EXPECT_EQ(numbers(m.weights->get(kQuery + ".weight", tuned.shape(kQuery + ".weight"))),
              tuned.before(kQuery + ".weight"));
    EXPECT_EQ(numbers(m.weights->get("state_proj.bias", tuned.shape("state_proj.bias"))),
              tuned.before("state_proj.bias"));
    EXPECT_TRUE(one_says(m.notes, {file, "is not applied"}));
    EXPECT_TRUE(tuned.health().sound());
    EXPECT_TRUE(one_says(open_model(tuned.converted(), {}).notes, {file, "is not applied"}));
  };
  const Shape bias = Tuned().shape("state_proj.bias");
  for (const bool use_peft : {true, false}) {  // also what could not be merged
    Tuned tuned;
    tuned.save(
        {{"init_lora_weights", "pissa"}},
        tuned.low_rank(kQuery, 2) + std::vector{some_tensor(kPeft + "state_proj.bias", bias, 1)});
    tuned.edit("config.json", [&](json& j) { j["use_peft"] = use_peft; });
    open_as_it_was(tuned, kAdapter);
  }
  Tuned inside;
  inside.tensors(inside.kWeights, [&](Tensors& all) {
    all = std::move(all) + inside.low_rank(kQuery, 2) +
          std::vector{some_tensor("state_proj.modules_to_save.default.bias", bias, 1)};
  });
  open_as_it_was(inside, inside.kWeights);
  Tuned other;
  other.write("adapter_model.bin", "x");
  EXPECT_TRUE(
      refuses(Fault::checkpoint, "--lora-scale 0 to run the weights", [&] { other.open(); }));
  open_as_it_was(other, "adapter_model.bin");
  Tuned without;
  without.options.lora_scale = 0;
  EXPECT_TRUE(refuses(Fault::usage, "has no LoRA adapter", [&] { without.open(); }));
}

// openpi's pull request 854: LoRA in PyTorch, whose TrainConfig is in metadata.pt.
TEST(AdapterFiles, of_openpi_have_the_scale_that_metadata_pt_tells) {
  Tuned tuned("openpi-pi05");
  const std::string down = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.down_proj";
  const auto factors = [&](const std::string& module, int64_t rank) {
    const Shape w = tuned.shape(module + ".weight");
    return std::vector{some_tensor(module + ".lora_a", {rank, w[1]}, 1),
                       some_tensor(module + ".lora_b", {w[0], rank}, 2)};
  };
  const std::vector<double> query = tuned.expected(kQuery, 2, 2.5),
                            mlp = tuned.expected(down, 3, 0.5);
  const auto add = [&](const Tensors& more) {
    tuned.tensors(tuned.kWeights, [&](Tensors& all) { all = all + more; });
  };
  add(factors(kQuery, 2) + factors(down, 3));
  EXPECT_TRUE(refuses(Fault::checkpoint, "--lora-scale", [&] { tuned.open(); }));
  fs::copy(test_data("torch/metadata_lora.pt"), tuned.path("metadata.pt"));
  expect_near(tuned.weight(kQuery + ".weight"), query, kQuery);
  expect_near(tuned.weight(down + ".weight"), mlp, down);
  EXPECT_TRUE(tuned.health().sound());
  tuned.options.lora_scale = 2.5;
  expect_near(tuned.weight(kQuery + ".weight"), query, "--lora-scale");
  tuned.options.lora_scale.reset();
  add(factors(kValue, 4));
  EXPECT_TRUE(refuses(Fault::checkpoint, "metadata.pt says 2", [&] { tuned.open(); }));
  add(factors(kUp, 2));  // of the vision tower, of which it says nothing
  EXPECT_TRUE(refuses(Fault::checkpoint, "--lora-scale", [&] { tuned.open(); }));
}

TEST(AdapterFiles, is_told_by_all_that_tell_of_a_model) {
  const Tuned tuned;
  tuned.save(
      {{"rank_pattern", {{"v_proj", 4}}}},
      tuned.low_rank(kQuery, 2) + tuned.low_rank(kValue, 4) +
          std::vector{some_tensor(kPeft + "state_proj.bias", tuned.shape("state_proj.bias"), 1)});
  const std::string said =
      "adapter_model.safetensors is merged: LoRA of rank 2 to 4 and scale 1.5 to 3 in 2 weights, 1 "
      "tensors that were trained in full";
  EXPECT_TRUE(one_says(tuned.open().notes, said));
  const Health health = tuned.health();
  EXPECT_TRUE(health.sound());
  EXPECT_TRUE(one_says(texts(health), said));
  const OpenedModel packed = open_model(tuned.converted(), {});
  EXPECT_TRUE(one_says(packed.notes, said));
  EXPECT_FALSE(packed.weights->adapter());

  Tuned without;
  without.options.lora_scale = 1;
  EXPECT_TRUE(refuses(Fault::usage, "has no LoRA adapter", [&] { without.open(); }));
  EXPECT_TRUE(refuses(Fault::usage, "--lora-scale", [] { open_model("demo", {.lora_scale = 1}); }));
}
