// labels: unit
// What surrounds a network, and its sizes, are as hostile as their file: refused when they do not
// fit together, before anything is computed from them. A robot that nobody has built in.
#include <nlohmann/json.hpp>

#include "damaged_checkpoint.h"
#include "model/config.h"
#include "policy/policy_spec_json.h"
#include "tendon/opened.h"

namespace tendon {
namespace {

using nlohmann::json;

using Edit = std::function<void(json&)>;
using Cases = std::vector<std::pair<const char*, Edit>>;

// What demo's policy spec is refused with after an edit of it.
void expect_refusals(const Cases& cases) {
  const OpenedModel demo = open_model("demo", {});
  for (const auto& [expected, edit] : cases) {
    json j = policy_spec_json(demo.spec);
    edit(j);
    const Error error =
        refused([&] { check_spec(read_policy_spec(j, "robot.json"), demo.config); });
    EXPECT_TRUE(says(error.what(), expected));
  }
}

json& normalize(json& j) { return j["transforms"].back(); }

// Another transform, before the others.
Edit first(const json& transform) {
  return [=](json& j) { j["transforms"].insert(j["transforms"].begin(), transform); };
}
Edit affine(const json& scale) { return first({{"type", "affine"}, {"scale", scale}}); }
Edit delta(const json& mask) { return first({{"type", "delta_actions"}, {"mask", mask}}); }

const json kJoints = {{"type", "aloha_joints"}};

TEST(PolicySpec, survive_being_written_and_read) {
  for (const char* model : {"demo", "demo:pi05"}) {
    const OpenedModel opened = open_model(model, {});
    const json written = policy_spec_json(opened.spec);
    const PolicySpec read = read_policy_spec(written, "again");
    EXPECT_EQ(policy_spec_json(read), written) << model;
    check_spec(read, opened.config);
  }
}

TEST(PolicySpec, that_do_not_fit_together_are_refused) {
  const Cases cases = {
      {"the state statistics have", [](json& j) { normalize(j)["state"]["range"].clear(); }},
      {"the action statistics have", [](json& j) { normalize(j)["action"]["range"].erase(0); }},
      {"the state statistics have",
       [](json& j) {
         json& state = normalize(j)["state"];
         state["centre"].erase(0);
         state["range"].erase(0);
         state["q01"].clear();
         state["q99"].clear();
       }},
      {"2 and 3 quantiles beside 3 statistics",
       [](json& j) {
         normalize(j)["action"]["q01"] = {1, 2};
       }},
      {"this robot has -1 state", [](json& j) { j["state_dim"] = -1; }},
      {"this robot has", [](json& j) { j["action_dim"] = 0; }},
      {"this robot has", [](json& j) { j["action_dim"] = 1 << 20; }},
      {"an ALOHA with", first(kJoints)},
      {"is relative to the state", delta(std::vector<bool>(40, true))},
      {"prompts of at most -1 tokens", [](json& j) { j["prompt"]["tokens_max"] = -1; }},
      {"prompts of at most", [](json& j) { j["prompt"]["tokens_max"] = 1 << 20; }},
      {"padded to -1", [](json& j) { j["prompt"]["padded_state"] = -1; }},
      {"padded to 1048576", [](json& j) { j["prompt"]["padded_state"] = 1 << 20; }},
      {"only pi0.5 reads", [](json& j) { j["prompt"]["state"] = true; }},
      {"folded into 3", [](json& j) { j["folded_vocab"] = 3; }},
      {"1 action names for", [](json& j) { j["action_names"] = {"waist"}; }},
      {"'front' is to be the model's 'topp', which it does not have; it has 'top', 'gripper'; "
       "nearest: 'top'",
       [](json& j) { j["cameras"]["front"] = "topp"; }},
      {"slots are 'top', 'top', expected 1 to 2 different names",
       [](json& j) {
         j["camera_slots"] = {"top", "top"};
       }},
      {"slots are 'top', 'gripper', 'side', expected",
       [](json& j) {
         j["camera_slots"] = {"top", "gripper", "side"};
       }},
      {"slots are , expected", [](json& j) { j["camera_slots"] = json::array(); }},
      {"camera 'side' is required", [](json& j) { j["required_cameras"] = {"side"}; }},
      {"a scale of 0", affine({1, 0})},
      {"3 scales and 2 offsets",
       first({{"type", "affine"}, {"scale", {1, 1, 1}}, {"offset", {0, 0}}})},
      {"60 scales and 60 offsets for", affine(std::vector<double>(60, 1))}};
  expect_refusals(cases);
}

TEST(PolicySpec, of_another_form_is_refused_by_key_got_and_expected) {
  const Cases cases = {
      {"robot.json.transforms[1].state.method is 'MEAN', expected one of IDENTITY, MEAN_STD",
       [=](json& j) {
         first({{"type", "affine"}, {"scale", {1}}})(j);
         normalize(j)["state"]["method"] = "MEAN";
       }},
      {"robot.json: unknown key 'transform'; nearest: 'transforms'",
       [](json& j) { j["transform"] = json::array(); }},
      {"robot.json.prompt: unknown key 'stile'; nearest: 'style'",
       [](json& j) { j["prompt"]["stile"] = "openpi"; }},
      {"robot.json: unknown robot 'alhoa'; nearest: 'aloha'", [](json& j) { j["name"] = "alhoa"; }},
      {"robot.json.name is 3, expected a text", [](json& j) { j["name"] = 3; }},
      {"robot.json.cameras is 3, expected an object", [](json& j) { j["cameras"] = 3; }},
      {"robot.json.cameras.top is 7, expected a text", [](json& j) { j["cameras"]["top"] = 7; }},
      {"robot.json.state_dim is \"7\", expected an integer", [](json& j) { j["state_dim"] = "7"; }},
      {"robot.json.state_dim is 18446744073709551615, expected an integer",
       [](json& j) { j["state_dim"] = ~0ull; }},
      {"robot.json.resize is 'torch', expected one of openpi, lerobot",
       [](json& j) { j["resize"] = "torch"; }},
      {"robot.json.default_prompt is",
       [](json& j) { j["default_prompt"] = std::string(5000, 'x'); }},
      {"robot.json.action_names is", [](json& j) { j["action_names"] = json(5000, "x"); }},
      {"robot.json.transforms[0].scale[1] is \"a\", expected a finite", affine({1, "a"})},
      {"robot.json.transforms[0].mask[1] is 0, expected true, false, or a run", delta({6, 0})},
      {"robot.json.transforms[0].mask[1] is 4095, expected true", delta({6, 4095})},
      {"expected a 'mask'", first({{"type", "delta_actions"}})},
      {"expected 'scale', 'offset' or both", first({{"type", "affine"}})},
      {"robot.json.transforms[0].type is 'afine', expected one of aloha_joints, affine, "
       "delta_actions, normalize; nearest: 'affine'",
       first({{"type", "afine"}})},
      {"expected one 'normalize', as the last", first({{"type", "normalize"}})},
      {"expected one 'normalize', as the last",
       [](json& j) { j["transforms"] = json::array({kJoints}); }},
      {"robot.json.transforms is [], expected", [](json& j) { j["transforms"] = json::array(); }},
      {"expected both 'state' and 'action', or", [](json& j) { normalize(j)["asset"] = "me"; }},
      {"expected both 'state' and 'action', or", [](json& j) { normalize(j).erase("state"); }}};
  expect_refusals(cases);
}

PolicySpec robot_of(const std::string& training) {
  return read_policy_spec(training_config(training).at("robot"), training);
}

TEST(Robots, bring_cameras_and_sizes_but_lerobots_keeps_those_of_the_checkpoint) {
  const PolicySpec base{
      .cameras = {{"top", "base_0_rgb"}}, .required = {"top"}, .state_dim = 5, .action_dim = 6};
  const PolicySpec same = read_policy_spec({{"name", "lerobot"}}, "x", base);
  EXPECT_EQ(same.cameras, base.cameras);
  EXPECT_EQ(same.required, base.required);
  EXPECT_EQ(std::pair(same.state_dim, same.action_dim), std::pair(int64_t{5}, int64_t{6}));
  const PolicySpec libero = read_policy_spec({{"name", "libero"}}, "x", base);
  EXPECT_EQ(libero.cameras.at("wrist_image"), "left_wrist_0_rgb");
  EXPECT_EQ(libero.required, std::vector<std::string>({"image", "wrist_image"}));
  EXPECT_EQ(std::pair(libero.state_dim, libero.action_dim), std::pair(int64_t{8}, int64_t{7}));
  EXPECT_EQ(libero.action_names.back(), "gripper");
}

TEST(Robots, training_configurations_are_those_of_openpi) {
  const auto droid = training_config("pi05_droid");
  EXPECT_EQ(droid.at("policy"), "pi05");
  EXPECT_EQ(droid.at("horizon"), 15);
  EXPECT_EQ(droid.at("max_token_len"), 200);
  EXPECT_TRUE(robot_of("pi05_droid").prompt.state_in_prompt);
  EXPECT_EQ(robot_of("pi05_droid").normalize().asset, "droid");
  EXPECT_EQ(training_config("pi05_libero").at("horizon"), 10);
  EXPECT_FALSE(robot_of("pi05_libero").prompt.state_in_prompt);
  EXPECT_EQ(training_config("pi0_aloha_towel").at("max_token_len"), 48);
  const PolicySpec towel = robot_of("pi0_aloha_towel");
  EXPECT_EQ(towel.default_prompt, "fold the towel");
  EXPECT_EQ(find<DeltaActions>(towel.transforms)->mask.size(), 14u);
  EXPECT_EQ(training_config_names().size(), 21u);
  EXPECT_TRUE(says(refused([] { training_config("pi05_driod"); }).what(), "pi05_droid"));
}

// openpi's LeRobotAlohaDataConfig adapts unless told otherwise, and none of its configs says
// otherwise. A reset pose is in the metadata of four.
TEST(Robots, every_aloha_of_openpi_is_adapted_and_those_with_metadata_have_a_reset_pose) {
  for (const std::string& name : training_config_names()) {
    const PolicySpec robot = robot_of(name);
    const bool aloha = name.find("_aloha") != std::string::npos;
    EXPECT_EQ(find<AlohaJoints>(robot.transforms) != nullptr, aloha) << name;
    const bool relative = find<DeltaActions>(robot.transforms) != nullptr;
    EXPECT_TRUE(!aloha || relative == (name != "pi0_aloha_sim")) << name;
    const bool pose = aloha && name != "pi0_aloha_sim" && name.find("uncap") == std::string::npos;
    EXPECT_EQ(robot.reset_pose.size(), pose ? 6u : 0u) << name;
  }
}

// examples/lab_arm.json beside a checkpoint with statistics of another name: six joints in degrees,
// of which the second turns the other way and the third has its zero elsewhere, and a gripper from
// 0 to 100.
json own_robot() {
  json j = read_json(test_data("../../examples/lab_arm.json"));
  j["robot"]["transforms"][0]["offset"] = {0, 0, 1.5, 0, 0, 0, 0};
  j["robot"]["transforms"][2]["asset"] = "demo";
  return j;
}

// The policy of an openpi checkpoint beside which the robot is described.
struct OwnRobot {
  Checkpoint checkpoint{"openpi-pi0"};
  std::unique_ptr<OpenedEngine> engine;
  json statistics;
  Observation observation{.state = {10, -20, 30, 40, -50, 60, 25}};

  OwnRobot() {
    checkpoint.write("tendon.json", own_robot().dump());
    OpenedModel m = checkpoint.open();
    statistics = read_json(checkpoint.path("assets/demo/norm_stats.json")).at("norm_stats");
    m.spec.folded_vocab = m.config.vocab;
    engine = open_engine(m, {.backend = "reference"});
    for (const char* camera : {"front", "wrist", "overview"})
      observation.images[camera] = {4, 4, std::vector<uint8_t>(48, 99)};
  }

  Policy& policy() const { return *engine->policy; }
  double statistic(const char* of, const char* what, size_t d) const {
    return statistics.at(of).at(what).at(d);
  }
  // Radians and a gripper from 0 to 1, as the model was trained with.
  static double model_units(const std::vector<double>& robot, size_t d) {
    const double degree = std::acos(-1.0) / 180;
    return d == 6 ? robot[d] / 100 : robot[d] * (d == 1 ? -degree : degree) + (d == 2 ? 1.5 : 0);
  }
};

TEST(OwnRobot, gives_the_model_its_state_and_no_picture_that_is_not_used) {
  OwnRobot own;
  EXPECT_EQ(robot_cameras(own.policy().spec()), std::vector<std::string>({"front", "wrist"}));
  const Inputs inputs = own.policy().inputs(own.observation);
  EXPECT_EQ(inputs.images, 2);
  const std::vector<float> state = own.engine->ops.download(inputs.state);
  for (size_t d = 0; d < state.size(); ++d) {
    double expected = 0;
    if (d < 7)
      expected =
          (OwnRobot::model_units(own.observation.state, d) - own.statistic("state", "mean", d)) /
          (own.statistic("state", "std", d) + 1e-6);
    EXPECT_NEAR(state[d], expected, 1e-5) << d;
  }
  own.observation.images.erase("front");
  EXPECT_TRUE(
      refuses(Fault::input, "'front' is missing", [&] { own.policy().inputs(own.observation); }));
}

TEST(OwnRobot, gets_actions_in_its_units_and_guides_by_what_is_left_of_them) {
  OwnRobot own;
  const Actions a = own.policy().infer(own.observation, {.seed = 3});
  ASSERT_EQ(a.dim, 7);
  PreviousChunk by_hand{.rows = 3, .dim = 7, .schedule = GuidanceSchedule::ones};
  PreviousChunk in_units = by_hand;
  for (size_t r = 0; r < static_cast<size_t>(a.horizon); ++r)
    for (size_t d = 0; d < 7; ++d) {
      const double std = own.statistic("actions", "std", d) + 1e-6;
      const double mean = own.statistic("actions", "mean", d);
      const double state = d == 6 ? 0 : OwnRobot::model_units(own.observation.state, d);
      double expected = a.normalized[32 * r + d] * std + mean + state;
      expected = d == 6 ? expected * 100 : (expected - (d == 2 ? 1.5 : 0)) * 180 / std::acos(-1.0);
      if (d == 1) expected = -expected;
      EXPECT_NEAR(a.values[7 * r + d], expected, 1e-4 * std::max(1.0, std::abs(expected))) << d;
      if (r >= 3) continue;
      std::vector<double> row(7, 0);
      row[d] = 5.0 * static_cast<double>(r) - 3 * static_cast<double>(d);
      in_units.actions.push_back(row[d]);
      by_hand.normalized.push_back(
          static_cast<float>((OwnRobot::model_units(row, d) - state - mean) / std));
    }
  const auto guided = [&](const PreviousChunk& previous) {
    return own.policy().infer(own.observation, {.seed = 3, .previous = previous}).normalized;
  };
  const std::vector<float> expected = guided(by_hand), got = guided(in_units);
  EXPECT_NE(got, a.normalized);
  expect_close(got, expected, 1e-4, "guided");
}

TEST(OwnRobot, is_asked_for_what_its_checkpoint_does_not_tell) {
  const auto asked = [](const char* kind, const json& robot, const std::string& text) {
    const Checkpoint checkpoint(kind);
    checkpoint.write("tendon.json", json{{"robot", robot}}.dump());
    EXPECT_TRUE(refuses(Fault::usage, text, [&] { checkpoint.open(); }));
  };
  const json list = json::array({{{"type", "normalize"}}});
  asked("openpi-pi0", {{"state_dim", 7}}, "\"transforms\" in \"robot\"");
  asked("openpi-pi05", {{"transforms", list}}, "--no-state-in-prompt");
  asked("openpi-pi0", {{"transforms", list}, {"state_din", 7}},
        "tendon.json: robot: unknown key 'state_din'; nearest: 'state_dim'");
  asked("openpi-pi0",
        {{"transforms", json::array({{{"type", "normalize"}, {"method", "MIN_MAX"}}})}},
        "expected MEAN_STD, QUANTILES or IDENTITY");
  asked("lerobot-pi0", {{"transforms", json::array({{{"type", "normalize"}, {"asset", "me"}}})}},
        "statistics in its processors");
}

TEST(OwnRobot, whose_numbers_are_given_has_none_of_the_checkpoints) {
  const Checkpoint checkpoint("lerobot-pi0");
  const std::vector<double> zeros(14, 0), ones(14, 1);
  const json numbers = {{"method", "MEAN_STD"}, {"centre", zeros}, {"range", ones}};
  const json normalize = {{"type", "normalize"}, {"state", numbers}, {"action", numbers}};
  checkpoint.write("tendon.json",
                   json{{"robot", {{"transforms", json::array({normalize})}}}}.dump());
  const OpenedModel m = checkpoint.open();
  const Normalizer& action = m.spec.normalize().action;
  EXPECT_EQ(action.range, ones);
  EXPECT_TRUE(action.q01.empty());
  EXPECT_EQ(action.family, Family::lerobot);
  EXPECT_EQ(m.spec.slots.size(), 3u);
}

TEST(TendonJson, of_every_policy_opens_the_same_again) {
  const Scratch scratch("again");
  const auto again = [&](const std::string& model, const OpenOptions& options, const json& first) {
    OpenOptions saved = options;
    saved.robot.clear();
    saved.config = scratch.write("saved.json", first.dump()).string();
    EXPECT_EQ(tendon_json(open_model(model, saved)), first) << model << " " << options.config;
  };
  std::vector<std::string> configs = training_config_names();
  for (const std::string& name : configs) {
    const bool pi05 = training_config(name).at("policy") == "pi05";
    const std::string model = pi05 ? "synthetic:pi05-small" : "synthetic:pi0-small";
    again(model, {}, tendon_json(open_model(model, {.config = name})));
  }
  for (const char* kind : {"lerobot-pi0", "lerobot-pi05", "openpi-pi0", "openpi-pi05"}) {
    const Checkpoint checkpoint(kind);
    again(checkpoint.folder(), checkpoint.options, tendon_json(checkpoint.open()));
  }
}

TEST(Configuration, beyond_every_published_size_is_refused) {
  const json largest = {{"vision", {{"depth", 256}}},
                        {"vlm", {{"depth", 256}}},
                        {"expert", {{"depth", 256}}},
                        {"num_steps", 1024},
                        {"cameras", 64}};
  read_config(largest, "largest.json");
  const std::pair<const char*, json> cases[] = {
      {"vision.depth is 257", {{"vision", {{"depth", 257}}}}},
      {"vision.image is 16384", {{"vision", {{"image", 16384}}}}},
      {"vision tokens is 262144", {{"vision", {{"image", 1024}, {"patch", 2}}}}},
      {"vlm.depth is 257", {{"vlm", {{"depth", 257}}}}},
      {"vlm.heads is 2048", {{"vlm", {{"heads", 2048}}}}},
      {"expert.head_dim is 8192", {{"expert", {{"head_dim", 8192}}}}},
      {"num_steps is 1025", {{"num_steps", 1025}}},
      {"cameras is 65", {{"cameras", 65}}},
      {"horizon is 0", {{"horizon", 0}}}};
  for (const auto& [expected, sizes] : cases)
    EXPECT_TRUE(refuses(Fault::checkpoint, expected,
                        [&sizes = sizes] { read_config(sizes, "sizes.json"); }));
}

TEST(MemoryPlan, beyond_the_machine_is_refused_without_being_told_a_limit) {
  const Scratch scratch("plan");
  const std::string sizes = scratch.write("sizes.json", R"({"vlm": {"mlp": 1048576}})").string();
  EXPECT_TRUE(refuses(Fault::memory, "this machine has", [&] {
    Engine::open("synthetic:pi0", {.config = sizes, .precision = "f32"});
  }));
}

}  // namespace
}  // namespace tendon
