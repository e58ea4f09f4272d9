// labels: unit
// What surrounds a network, and its sizes, are as hostile as their file: refused when they do not
// fit together, before anything is computed from them.
#include <nlohmann/json.hpp>

#include "model/config_file.h"
#include "policy/open_model.h"
#include "policy/policy.h"
#include "policy/policy_spec_json.h"
#include "tendon/tendon.h"
#include "test_files.h"

namespace tendon {
namespace {

using nlohmann::json;

// The refusal of demo's policy spec after `change`, read as from a converted file.
std::string refusal(const std::function<void(json&)>& change) {
  const OpenedModel demo = open_model("demo", {});
  json j = policy_spec_json(demo.spec);
  change(j);
  const Error error =
      refused([&] { check_spec(read_policy_spec(j, "packed.safetensors"), demo.config); });
  EXPECT_EQ(error.fault(), Fault::checkpoint) << error.what();
  return error.what();
}

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
  const std::pair<const char*, std::function<void(json&)>> cases[] = {
      {"the state statistics have", [](json& j) { j["state"]["range"].clear(); }},
      {"the action statistics have", [](json& j) { j["action"]["range"].erase(0); }},
      {"the state statistics have",
       [](json& j) {
         j["state"]["centre"].erase(0);
         j["state"]["range"].erase(0);
         j["state"]["q01"].clear();
         j["state"]["q99"].clear();
       }},
      {"this robot has -1 state", [](json& j) { j["state_dim"] = -1; }},
      {"this robot has", [](json& j) { j["action_dim"] = 0; }},
      {"this robot has", [](json& j) { j["action_dim"] = 1 << 20; }},
      {"an ALOHA with", [](json& j) { j["robot"] = "aloha"; }},
      {"is relative to the state", [](json& j) { j["relative"] = std::vector<bool>(40, true); }},
      {"prompts of at most -1 tokens", [](json& j) { j["tokens_max"] = -1; }},
      {"prompts of at most", [](json& j) { j["tokens_max"] = 1 << 20; }},
      {"padded to -1", [](json& j) { j["padded_state"] = -1; }},
      {"padded to 1048576", [](json& j) { j["padded_state"] = 1 << 20; }},
      {"folded into 3", [](json& j) { j["folded_vocab"] = 3; }},
      {"packed.safetensors: policy spec: ", [](json& j) { j["robot"] = "alhoa"; }},
      {"packed.safetensors: policy spec: ", [](json& j) { j["state"]["method"] = "MEAN"; }},
      {"packed.safetensors: policy spec: ", [](json& j) { j["cameras"] = 3; }}};
  for (const auto& [expected, change] : cases) {
    const std::string got = refusal(change);
    EXPECT_NE(got.find(expected), std::string::npos) << expected << " not in: " << got;
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
  for (const auto& [expected, sizes] : cases) {
    const Error error = refused([&sizes = sizes] { read_config(sizes, "sizes.json"); });
    EXPECT_EQ(error.fault(), Fault::checkpoint);
    EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
  }
}

TEST(MemoryPlan, beyond_the_machine_is_refused_without_being_told_a_limit) {
  const Scratch scratch("plan");
  const std::string sizes = scratch.write("sizes.json", R"({"vlm": {"mlp": 1048576}})").string();
  const Error error =
      refused([&] { Engine::open("synthetic:pi0", {.config = sizes, .precision = "f32"}); });
  EXPECT_EQ(error.fault(), Fault::memory);
  EXPECT_NE(std::string(error.what()).find("this machine has"), std::string::npos) << error.what();
}

}  // namespace
}  // namespace tendon
