// labels: unit
// What public reports say of checkpoints that act wrongly: each kind is refused by name, said, or
// done right; by every verb, since all of them open a model by open_model.
#include <cmath>

#include "damaged_checkpoint.h"
#include "tensor/check.h"

using namespace tendon;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const std::string kVision =
    "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.1.";
const std::string kExpert = "paligemma_with_expert.gemma_expert.model.layers.2.";

// Exit code 3 with these words; the health check says the same sentence and calls it unsound.
void expect_refused(const std::string& kind, const std::vector<std::string>& pieces,
                    const Change& change) {
  Checkpoint checkpoint(kind);
  change(checkpoint);
  EXPECT_TRUE(refuses(Fault::checkpoint, pieces, [&] { checkpoint.open(); }));
  const Health health = checkpoint.health();
  EXPECT_FALSE(health.sound()) << pieces.front();
  EXPECT_TRUE(one_says(texts(health), pieces.front()));
}

// One warning that holds `piece`, or none where it is empty; opened, by the health check, and of a
// converted file.
void expect_said(const std::string& kind, const std::string& piece, const Change& change) {
  Checkpoint checkpoint(kind);
  change(checkpoint);
  const auto expect_in = [&](const std::vector<std::string>& warnings, const std::string& who) {
    EXPECT_EQ(warnings.size(), piece.empty() ? 0u : 1u) << kind << " " << who << " " << piece;
    for (const std::string& warning : warnings) EXPECT_TRUE(says(warning, piece));
  };
  std::vector<std::string> told;
  checkpoint.options.note = [&](const std::string& note) { told.push_back(note); };
  const OpenedModel model = checkpoint.open();
  expect_in(model.warnings, "opened");
  EXPECT_NO_THROW(json(model.notes).dump());  // no half of a character
  std::erase_if(told, [](const std::string& note) { return !note.starts_with("warning: "); });
  expect_in(told, "told");
  expect_in(texts(checkpoint.health(), Finding::Level::warning), "health");
  expect_in(open_model(checkpoint.converted(), {}).warnings, "converted");
}

Change renamed(const std::string& end, const std::string& to) {
  return tensor(Checkpoint::kWeights, end,
                [=](HostTensor& t) { t.name = t.name.substr(0, t.name.size() - end.size()) + to; });
}

Change file(const std::string& name, const std::string& content = "{}") {
  return [=](Checkpoint& c) {
    fs::create_directories(c.path(name).parent_path());
    c.write(name, content);
  };
}

// A key in the configuration of the step, in either file of processors.
Change set_step(const std::string& name, const std::string& pointer, const json& value) {
  return [=](Checkpoint& c) {
    for (const char* file : {kPre, kPost})
      c.edit(file, [&](json& j) {
        for (json& step : j["steps"])
          if (step["registry_name"] == name) step["config"][json::json_pointer(pointer)] = value;
      });
  };
}

// As lerobot wrote it before 0.5.1.
void without_relative_steps(Checkpoint& c) {
  for (const char* file : {kPre, kPost})
    c.edit(file, [](json& j) {
      std::erase_if(j["steps"].get_ref<json::array_t&>(), [](const json& step) {
        return step["registry_name"].get<std::string>().ends_with("_actions_processor");
      });
    });
}

// The sizes of the golden case without a key.
Change without_size(const std::string& key) {
  return [=](Checkpoint& c) {
    json sizes = read_json(c.options.config);
    sizes.erase(key);
    c.options.config = c.write("sizes.json", sizes.dump());
  };
}

}  // namespace

TEST(Adapters, that_are_not_merged_are_refused_wherever_they_are) {
  const std::vector<std::pair<const char*, Change>> cases = {
      {"openpi-pi0", more_weights(kExpert + "self_attn.q_proj.lora_A")},
      {"lerobot-pi05", more_weights("model." + kVision + "mlp.fc1.lora_B.default.weight")},
      {"lerobot-pi0", more_weights(kExpert + "mlp.down_proj.lora_magnitude_vector")},
      {"openpi-pi05", more_weights("action_in_proj.modules_to_save.default.weight")},
      {"openpi-pi05", renamed("q_proj.weight", "q_proj.base_layer.weight")},
      // Other methods than LoRA.
      {"lerobot-pi0", more_weights("model.state_proj.oft_R.default.weight")},
      {"openpi-pi05", more_weights(kExpert + "self_attn.k_proj.ia3_l")},
      {"lerobot-pi05", more_weights(kVision + "self_attn.out_proj.hada_w1_a")},
      {"lerobot-pi05", file("adapter_model.safetensors")},
      {"openpi-pi0", file("adapter_config.json", R"({"peft_type": "LORA"})")},
      {"lerobot-pi0", file("fold_towels/adapter_config.json")},
      {"openpi-pi05", file("pytorch_lora_weights.bin")},
      {"openpi-pi0", all({file("adapter_model.safetensors"),
                          [](Checkpoint& c) { fs::remove(c.path(c.kWeights)); }})},
      {"lerobot-pi05", set_key("use_peft", true)},
  };
  for (const auto& [kind, change] : cases)
    expect_refused(kind, {kMergeFirst.data(), "merge_and_unload"}, change);
}

TEST(Adapters, tensors_that_are_not_used_and_look_trained_are_refused) {
  for (const std::string& name :
       {kExpert + "adapter.down.weight", std::string("action_adapter.scale"),
        kVision + "cross_attn.q.weight", std::string("prompt_encoder.default.embedding.weight"),
        std::string("action_in_proj.LoRA.up")})
    for (const char* kind : {"lerobot-pi0", "openpi-pi05"})
      expect_refused(kind, {kMergeFirst.data(), name}, more_weights(name));
}

TEST(Adapters, are_not_seen_where_there_are_none) {
  Checkpoint checkpoint("openpi-pi0");
  file("exploration.json")(checkpoint);
  file("optimizer.pt")(checkpoint);
  more_weights("surprise.weight")(checkpoint);
  more_weights(kVision + "self_attn.position_ids")(checkpoint);
  EXPECT_EQ(checkpoint.open().unused.size(), 2u);
}

TEST(Pictures, with_a_normalisation_of_their_own_are_refused) {
  const std::string step = "normalizer_processor", key = "observation.images.base_0_rgb";
  const char* of_pi0 = "policy_preprocessor_step_6_normalizer_processor.safetensors";
  const char* of_pi05 = "policy_preprocessor_step_3_normalizer_processor.safetensors";
  const auto visual = [&](const char* mode) {
    return all({set_step(step, "/norm_map/VISUAL", mode),
                set_key("normalization_mapping", {{"VISUAL", mode}})});
  };
  expect_refused("lerobot-pi0", {"VISUAL", key, "MEAN_STD", "expected IDENTITY"},
                 all({visual("MEAN_STD"), more(of_pi0, key + ".mean", {3, 1, 1})}));
  expect_refused(
      "lerobot-pi05", {"VISUAL", "left_wrist", "QUANTILES"},
      all({visual("QUANTILES"), more(of_pi05, "observation.images.left_wrist_0_rgb.q01", {3})}));
  expect_refused("lerobot-pi05", {"VISUAL", "MIN_MAX"},
                 set_key("normalization_mapping", {{"VISUAL", "MIN_MAX"}}));
  // lerobot leaves pictures without statistics as they are, and those that are not listed.
  for (const Change& change :
       {visual("MEAN_STD"),
        all({visual("MIN_MAX"), more(of_pi0, key + ".min", {3}),
             set_step(step, "/normalize_observation_keys", json::array({"observation.state"}))})})
    expect_said("lerobot-pi0", "", change);
}

TEST(Processors, that_do_not_normalise_the_state_or_make_actions_absolute_are_followed_or_refused) {
  Checkpoint checkpoint("lerobot-pi0");
  set_step("normalizer_processor", "/normalize_observation_keys", json::array())(checkpoint);
  const OpenedModel model = checkpoint.open();
  EXPECT_EQ(model.spec.normalize().state.method, NormMethod::identity);
  EXPECT_EQ(model.spec.normalize().action.method, NormMethod::mean_std);
  const Change relative = set_step("relative_actions_processor", "/enabled", true);
  const Change absolute = set_step("absolute_actions_processor", "/enabled", true);
  for (const char* kind : {"lerobot-pi0", "lerobot-pi05"}) {
    expect_refused(kind, {"relative_actions_processor", "absolute_actions_processor"}, relative);
    expect_refused(kind, {"absolute_actions_processor", "true"}, absolute);
    expect_refused(kind, {"use_relative_actions"}, all({relative, absolute}));
    expect_said(kind, "", all({relative, absolute, set_key("use_relative_actions", true)}));
  }
}

TEST(Horizon, that_nobody_tells_is_not_guessed) {
  const Change no_key = without_key("action_horizon");
  const Change no_file = [](Checkpoint& c) { fs::remove(c.path("config.json")); };
  for (const char* kind : {"openpi-pi0", "openpi-pi05"})
    for (const Change& change : {no_key, no_file}) {
      expect_refused(kind, {"action horizon", "--config NAME", "{\"horizon\": N}", "metadata.pt"},
                     all({change, without_size("horizon")}));
      Checkpoint given(kind);  // by --config FILE
      change(given);
      EXPECT_EQ(given.open().config.horizon, 10);
      without_size("horizon")(given);
      given.write("tendon.json", R"({"horizon": 7})");
      EXPECT_EQ(given.open().config.horizon, 7);
    }
}

TEST(FirstPi0, keys_that_change_actions_are_refused_and_unknown_ones_said) {
  for (const char* kind : {"lerobot-pi0", "lerobot-pi05"}) {
    for (const char* key : {"adapt_to_pi_aloha", "use_delta_joint_actions_aloha"}) {
      expect_refused(kind, {key, "true", "lerobot.processor.migrate_policy_normalization"},
                     set_key(key, true));
      expect_said(kind, "", set_key(key, false));
    }
    for (const char* file : {kPre, kPost})
      expect_refused(kind, {file, "lerobot.processor.migrate_policy_normalization"},
                     [&](Checkpoint& c) { fs::remove(c.path(file)); });
    for (const json& value :
         {json("flip"), json(0.5), json({{"gain", 2}}), json(std::string(38, 'x') + "äöü")})
      expect_said(kind, "mirror_arms", set_key("mirror_arms", value));
    expect_said(kind, "resize_imgs_with_padding", set_key("resize_imgs_with_padding", {224, 224}));
    expect_said(kind, "",
                all({set_key("compile_model", true), set_key("optimizer_beta3", 0.5),
                     set_key("proj_width", 1024), set_key("use_cache", true)}));
  }
  expect_said("openpi-pi05", "discrete_state_input", set_key("discrete_state_input", false));
  Checkpoint checkpoint("lerobot-pi0");
  all({without_size("num_steps"), without_key("num_inference_steps"), set_key("num_steps", 7)})(
      checkpoint);
  EXPECT_EQ(checkpoint.open().config.num_steps, 7);
}

// What lerobot's policy reads of it: the same as of the checkpoint before `change`.
void expect_same(const std::string& kind, const Change& change) {
  const OpenedModel as_it_was = Checkpoint(kind).open();
  Checkpoint checkpoint(kind);
  change(checkpoint);
  const OpenedModel now = checkpoint.open();
  const Normalize &before = as_it_was.spec.normalize(), &after = now.spec.normalize();
  for (const auto& [a, b] :
       {std::pair(&before.state, &after.state), {&before.action, &after.action}}) {
    EXPECT_EQ(a->centre, b->centre);
    EXPECT_EQ(a->range, b->range);
  }
  EXPECT_EQ(as_it_was.spec.state_dim, now.spec.state_dim);
  EXPECT_EQ(as_it_was.spec.action_dim, now.spec.action_dim);
  const Health health = checkpoint.health();
  EXPECT_TRUE(health.sound()) << testing::PrintToString(texts(health));
}

template <class T>
Change stored_as(DType dtype) {
  return [=](Checkpoint& c) {
    c.tensors(kPreState, [&](Tensors& all) {
      for (HostTensor& t : all) {
        const auto bytes = std::make_shared<std::vector<std::byte>>();
        for (int64_t i = 0; i < t.shape.count(); ++i) {
          const T value = static_cast<T>(element(t, i));
          const auto* at = reinterpret_cast<const std::byte*>(&value);
          bytes->insert(bytes->end(), at, at + sizeof(T));
        }
        t.dtype = dtype;
        t.bytes = *bytes;
        t.owner = bytes;
      }
    });
  };
}

TEST(Statistics, of_any_type_are_read_as_float32_and_what_nobody_reads_may_be_anything) {
  expect_same("lerobot-pi0", stored_as<double>(DType::f64));
  Checkpoint whole("lerobot-pi0");
  stored_as<int64_t>(DType::i64)(whole);
  const OpenedModel of_integers = whole.open();
  for (const double mean : of_integers.spec.normalize().state.centre)
    EXPECT_EQ(mean, std::trunc(mean));
  // It normalises by mean and std.
  expect_same("lerobot-pi0", value(kPreState, "observation.state.q01", 1, std::nanf("")));
  expect_same("lerobot-pi0", tensor(kPreState, "observation.state.q99", [](HostTensor& t) {
                t = Checkpoint::filled(t.name, {3, 5}, 1);
              }));
}

// openpi pads statistics to the model's width, of which a padded value's quantiles differ a little.
Change padded_statistics(size_t width) {
  return [=](Checkpoint& c) {
    c.edit("assets/demo/norm_stats.json", [&](json& j) {
      for (json& rows : j["norm_stats"])
        for (const auto& [name, padding] :
             {std::pair("mean", 0.0), {"std", 0.0}, {"q01", -1e-10}, {"q99", 1e-10}})
          while (rows[name].size() < width) rows[name].push_back(padding);
    });
  };
}

TEST(Statistics, wider_than_the_robot_are_cut_to_its_state) {
  for (const char* kind : {"openpi-pi0", "openpi-pi05"}) {
    const Actions wanted = Checkpoint(kind).engine().infer(Checkpoint::scene(8));
    Checkpoint wide(kind);
    padded_statistics(32)(wide);
    const Actions got = wide.engine().infer(Checkpoint::scene(8));
    ASSERT_EQ(got.dim, 32);
    for (int64_t row = 0; row < wanted.horizon; ++row)
      for (int64_t d = 0; d < wanted.dim; ++d)
        EXPECT_EQ(got.values[static_cast<size_t>(row * got.dim + d)],
                  wanted.values[static_cast<size_t>(row * wanted.dim + d)]);
    Engine engines[] = {wide.engine(), Engine::open(wide.converted(), {.threads = 1})};
    for (Engine& engine : engines) {
      for (const size_t values : {7u, 33u})  // a value that varied is missing; wider than the model
        EXPECT_TRUE(refuses(Fault::input, "", [&] { engine.infer(Checkpoint::scene(values)); }));
      EXPECT_NO_THROW(engine.infer(Checkpoint::scene(32)));
    }
    wide.options.statistics = "none";
    EXPECT_NO_THROW(wide.engine().infer(Checkpoint::scene(3)));
  }
}

TEST(Statistics, wider_than_the_robot_leave_it_the_state_that_it_has_and_its_transforms_read) {
  Checkpoint told("openpi-pi0");
  padded_statistics(32)(told);
  const auto with_robot = [&](const json& robot) {
    told.write("tendon.json", json{{"robot", robot}}.dump());
    return told.open().spec;
  };
  const json normalize{{"type", "normalize"}};
  EXPECT_EQ(with_robot({{"state_dim", 9}, {"transforms", {normalize}}}).narrowest_state(), 9);
  const json delta{{"type", "delta_actions"}, {"mask", {11, -2}}};
  const PolicySpec reads = with_robot({{"transforms", {delta, normalize}}});
  EXPECT_EQ(reads.narrowest_state(), 11);
  EXPECT_EQ(reads.state_dim, 32);
  const json eight{{"transforms", {delta, normalize}}, {"state_dim_min", 8}};
  EXPECT_TRUE(says(refused([&] { with_robot(eight); }).what(), "of which the transforms read 11"));
}

TEST(Statistics, given_to_a_base_model_of_lerobot_tell_the_robot) {
  Checkpoint base("lerobot-pi0");
  base.edit("config.json", [](json& j) {
    j["input_features"]["observation.state"]["shape"] = {32};
    j["output_features"]["action"]["shape"] = {32};
  });
  base.options.statistics =
      golden("tiny-checkpoint-openpi-pi0/checkpoint/assets/demo/norm_stats.json").string();
  EXPECT_EQ(base.open().spec.state_dim, 8);
  EXPECT_EQ(base.open().spec.action_dim, 8);
  Checkpoint tuned("lerobot-pi0");  // for a robot of its own, whose statistics these are not
  tuned.options.statistics = base.options.statistics;
  EXPECT_TRUE(says(refused([&] { tuned.open(); }).what(), "statistics have 8 and 8 values"));
}

TEST(Features, of_type_state_or_action_beside_those_that_a_policy_reads_do_not_matter) {
  for (const char* kind : {"lerobot-pi0", "lerobot-pi05"})
    for (const json& shape : {json({1}), json({2, 3}), json()})
      expect_same(kind, [&](Checkpoint& c) {
        c.edit("config.json", [&](json& j) {
          for (const char* name : {"observation.tactile", "a", "observation.state.joints"})
            j["input_features"][name] = {{"type", "STATE"}, {"shape", shape}};
          for (const char* name : {"action.joint_pos", "a"})
            j["output_features"][name] = {{"type", "ACTION"}, {"shape", shape}};
        });
      });
}

TEST(StateOfPi05, is_as_wide_as_its_feature_whatever_max_state_dim_and_the_tensors_say) {
  for (const int width : {1, 5, 64}) expect_same("lerobot-pi05", set_key("max_state_dim", width));
  expect_refused("lerobot-pi0", {"max_state_dim is 64, but the tensors say"},
                 set_key("max_state_dim", 64));
}

TEST(FolderAbove, a_checkpoint_is_refused_with_the_folder_that_is_meant) {
  const Checkpoint checkpoint("lerobot-pi0");
  const Scratch run("run");
  const fs::path meant = run.path() / "checkpoints/005000/pretrained_model";
  fs::create_directories(meant.parent_path());
  fs::copy(checkpoint.folder(), meant, fs::copy_options::recursive);
  fs::copy(meant / "config.json", run.path());
  const auto open = [&](const fs::path& named) { open_model(named.string(), checkpoint.options); };
  for (const fs::path& named : {run.path(), run.path() / "checkpoints/005000"})
    EXPECT_TRUE(refuses(Fault::checkpoint, meant.string(), [&] { open(named); }));
  const Error file = refused([&] { open(meant / "model.safetensors"); });
  EXPECT_TRUE(says(file.what(), "name the folder: " + meant.string()));
}

TEST(Aloha, joints_that_are_adapted_are_said_and_may_be_left_as_they_are) {
  const auto said = [](const OpenedModel& m) {
    return bool{one_says(m.notes, "--no-adapt-to-pi")};
  };
  for (OpenOptions options : {OpenOptions{.robot = "aloha"}, OpenOptions{.config = "pi05_aloha"}}) {
    const std::string model =
        options.config.empty() ? "synthetic:pi0-small" : "synthetic:pi05-small";
    EXPECT_TRUE(said(open_model(model, options)));
    options.adapt_to_pi = false;
    const OpenedModel as_it_is = open_model(model, options);
    EXPECT_FALSE(said(as_it_is) || find<AlohaJoints>(as_it_is.spec.transforms));
  }
  EXPECT_FALSE(said(open_model("synthetic:pi0-small", {.robot = "droid"})));
  EXPECT_TRUE(refuses(Fault::usage, "", [] { open_model("demo", {.adapt_to_pi = false}); }));
}

// What lerobot 0.4 did in another way: done where its files can be told from later ones, said where
// not.
TEST(Lerobot04, is_said_where_a_checkpoint_may_be_of_it) {
  const Change wide = edited("config.json", [](json& j) {
    j["input_features"]["observation.images.left_wrist_0_rgb"]["shape"] = {3, 480, 640};
  });
  const Change padded = [](Checkpoint& c) { c.options.pad_state_in_prompt = true; };
  const Change narrow = [](Checkpoint& c) { c.options.pad_state_in_prompt = false; };
  const Change bright = [](Checkpoint& c) { c.options.dark_bars = false; };
  // Others' conversions have no head beside the table.
  const Change may_be = all({without_relative_steps, erased("paligemma.lm_head.weight")});
  expect_said("lerobot-pi05",
              "it may be of lerobot 0.4, which padded the state in the prompt; say "
              "--pad-state",
              may_be);
  for (const Change& told : {padded, narrow}) {
    expect_said("lerobot-pi05", "", all({may_be, told}));
    expect_said("lerobot-pi05", "square with -3; say --dark-bars", all({may_be, told, wide}));
    expect_said("lerobot-pi05", "", all({may_be, told, wide, bright}));
  }
  expect_said("lerobot-pi0", "square with -3", all({may_be, wide}));
  expect_said("lerobot-pi0", "", may_be);
  expect_said("lerobot-pi05", "", wide);

  TimeSequence sequence = TimeSequence::lerobot;
  const auto variant = [&](const std::string& kind, const Change& change) {
    expect_said(kind, "", change);
    Checkpoint checkpoint(kind);
    change(checkpoint);
    const PolicySpec& s = checkpoint.open().spec;
    EXPECT_EQ(s.sequence, sequence);
    return std::pair(s.prompt.padded_state.value_or(0), s.dark_bars);
  };
  const Change is = all({without_relative_steps, erased("embed_tokens.weight")});
  for (const Change& certain : {is, all({without_relative_steps, without_key("rtc_config")})}) {
    EXPECT_EQ(variant("lerobot-pi05", all({certain, wide})), std::pair(int64_t{32}, true));
    EXPECT_EQ(variant("lerobot-pi05", all({certain, narrow, bright})),
              std::pair(int64_t{0}, false));
    EXPECT_EQ(variant("lerobot-pi0", certain), std::pair(int64_t{0}, true));
  }
  EXPECT_EQ(variant("lerobot-pi05", all({without_relative_steps, wide})),  // of 0.5.0
            std::pair(int64_t{0}, false));
  const Change json_says =
      file("tendon.json", R"({"robot": {"dark_bars": false, "prompt": {"padded_state": null}}})");
  EXPECT_EQ(variant("lerobot-pi05", all({is, json_says})), std::pair(int64_t{0}, false));

  const Change no_peft = without_key("use_peft");
  EXPECT_EQ(variant("lerobot-pi0", no_peft), std::pair(int64_t{0}, false));
  sequence = TimeSequence::lerobot_sum;  // of 0.4.0 to 0.4.2
  EXPECT_EQ(variant("lerobot-pi0", all({is, no_peft})), std::pair(int64_t{0}, true));
}
