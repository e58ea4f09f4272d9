// labels: model
// The embedded policies: the real loader on what training left, and lerobot's own actions.
#include "checkpoint/files.h"
#include "demo/closed_loop.h"
#include "model/weights.h"
#include "tendon/opened.h"
#include "tensor/compare.h"
#include "test_files.h"

namespace tendon::demo {
namespace {

std::vector<float> narrow(std::span<const double> values) { return {values.begin(), values.end()}; }

// An episode that lerobot's policy went through, chunk by chunk; the pictures are drawn anew.
void expect_lerobots_actions(const std::string& model, const std::string& backend, double bound) {
  const std::string kind = model == "demo" ? "pi0" : "pi05";
  const auto file = SafetensorsFile::open(test_data("demo/" + kind + "-episode.safetensors"));
  const auto& about = file->metadata();
  const Trial trial = {.seed = std::stoull(about.at("seed")),
                       .verb = about.at("verb") == "push" ? Verb::push : Verb::reach,
                       .pairs = about.at("pairs") == "seen" ? Pairs::seen : Pairs::held_out};
  const std::vector<double> states = numbers(*file->find("state"));
  const std::vector<double> noises = numbers(*file->find("noise"));
  const std::vector<double> chunks = numbers(*file->find("actions"));
  const auto per_chunk = static_cast<size_t>(file->find("actions")->shape[1] * 3);
  const size_t noise = noises.size() * per_chunk / chunks.size();

  Engine engine = Engine::open(model, {.backend = backend, .precision = "f32"});
  size_t chunk = 0;
  const Policy compared = [&](const Observation& now, const auto&, uint64_t) {
    const std::span<const double> expected(chunks.data() + chunk * per_chunk, per_chunk);
    for (size_t i = 0; i < 3; ++i)  // lerobot's actions moved the gripper to the same place
      EXPECT_NEAR(now.state[i], states[3 * chunk + i], 1e-6);
    InferOptions options;
    options.noise.assign(noises.begin() + static_cast<int64_t>(chunk * noise),
                         noises.begin() + static_cast<int64_t>((chunk + 1) * noise));
    const Comparison c = compare(narrow(engine.infer(now, options).values), narrow(expected));
    EXPECT_LT(c.relative_l2, bound) << "chunk " << chunk << ", max error " << c.max_error;
    ++chunk;
    return std::vector<double>(expected.begin(), expected.end());
  };
  const Episode episode = trial.episode();
  EXPECT_EQ(episode.task.prompt(), about.at("prompt"));
  const Record record = run_episode(episode, compared, {}, 0);
  EXPECT_EQ(record.solved, about.at("solved") == "1");
  EXPECT_TRUE(record.solved);
  EXPECT_EQ(chunk * per_chunk, chunks.size());
}

}  // namespace

TEST(DemoPolicy, acts_as_in_lerobot) {
  for (const char* model : {"demo", "demo:pi05"})
    for (const char* backend : {"cpu", "reference"}) expect_lerobots_actions(model, backend, 2e-5);
}

TEST(DemoPolicy, opens_as_a_lerobot_checkpoint_from_the_library) {
  for (const std::string model : {"demo", "demo:pi0", "demo:pi05"}) {
    const OpenedModel m = open_model(model, {});
    EXPECT_EQ(m.layout, "demo");
    EXPECT_EQ(m.config.pi05(), model == "demo:pi05");
    EXPECT_EQ(m.spec.slots, (std::vector<std::string>{"top", "gripper"}));
    EXPECT_EQ(m.spec.state_dim, 3);
    EXPECT_EQ(m.spec.action_dim, 3);
    EXPECT_EQ(m.config.horizon, 10);
    EXPECT_TRUE(m.unused.empty());
    EXPECT_EQ(m.tokenizer.substr(0, 9), "embedded:");
  }
  const auto refused_to_open = [](Fault fault, const char* model, const OpenOptions& options) {
    return refuses(fault, "", [&] { open_model(model, options); });
  };
  EXPECT_TRUE(refused_to_open(Fault::checkpoint, "demo:pi1", {}));
  EXPECT_TRUE(refused_to_open(Fault::usage, "demo", {.config = "pi05_droid"}));
  EXPECT_TRUE(refused_to_open(Fault::usage, "demo", {.robot = "droid"}));
}

TEST(DemoPolicy, the_same_files_from_disk_are_the_same_policy) {
  Engine inside = Engine::open("demo", {.precision = "f32"});
  Engine outside = Engine::open(TENDON_TEST_DATA "/../../assets/demo/pi0", {.precision = "f32"});
  EXPECT_EQ(inside.infer(demo_observation()).values, outside.infer(demo_observation()).values);
}

TEST(DemoPolicy, never_returns_an_action_that_is_not_finite) {
  for (size_t d = 0; d < 3; ++d) {
    OpenedModel m = open_model("demo", {});
    m.spec.normalize().action.centre[d] = 1e300;  // infinite as a float, in which lerobot computes
    const auto engine = open_engine(m, {.backend = "reference"});
    EXPECT_TRUE(refuses(Fault::internal, "action " + std::to_string(d) + " of row 0 is inf",
                        [&] { engine->policy->infer(demo_observation(), {.steps = 1}); }));
  }
}

TEST(DemoPolicy, is_described_with_every_statistic_and_the_bytes_of_every_tensor) {
  const nlohmann::json about = nlohmann::json::parse(describe("demo", {.precision = "f32"}));
  const OpenedModel m = open_model("demo", {});
  const Normalize& by = m.spec.normalize();
  for (const auto& [which, n] : {std::pair("state", &by.state), {"action", &by.action}}) {
    const nlohmann::json& values = about.at("statistics").at(which).at("values");
    ASSERT_EQ(values.size(), 3u);
    for (size_t d = 0; d < 3; ++d) {
      EXPECT_EQ(values[d].at("mean"), n->centre[d]);
      EXPECT_EQ(values[d].at("std"), n->range[d]);
    }
  }
  // Keys and values of every layer: two cameras, the prompt, the state and the actions.
  const Config& c = m.config;
  const int64_t rows = c.cameras * c.vision.tokens() + c.max_token_len + 1 + c.horizon;
  EXPECT_EQ(about.at("memory_bytes").at("kv_cache"),
            2 * c.vlm.depth * rows * c.vlm.kv_heads * c.vlm.head_dim * 4);
  std::map<std::string, int64_t> stored;
  for (const auto& [name, t] : m.weights->tensors()) stored[name] = std::ssize(t.bytes);
  int64_t bytes = 0;  // of what the model reads: the file holds a head of words too
  for (const Parameter& p : parameters(c)) bytes += stored.at(p.name);
  EXPECT_EQ(about.at("tensors").back().at("bytes"), bytes);
}

TEST(DemoPolicy, words_and_numbers_of_its_prompts_are_one_token_each) {
  const OpenedModel m = open_model("demo:pi05", {});
  const auto tokens = [&](const std::string& text) {
    return m.spec.tokenizer->encode(text).size();
  };
  EXPECT_EQ(tokens("reach the red disc\n"), 5u);
  EXPECT_EQ(tokens("push the magenta triangle to the bottom edge\n"), 9u);
  EXPECT_EQ(tokens(" 255 0 17 -1"), 4u);
}

TEST(EmbeddedFiles, are_found_by_their_prefix_only) {
  EXPECT_TRUE(is_file("embedded:pi0/config.json"));
  EXPECT_FALSE(is_file("embedded:pi0/nothing"));
  EXPECT_FALSE(is_file("pi0/config.json"));
  EXPECT_FALSE(is_file("9letters:pi0/config.json"));
  for (const char* absent_or_longer : {"embedded:pi0/nothing", "embedded:pi0/config.json"})
    EXPECT_TRUE(refuses(Fault::checkpoint, "", [&] { read_file(absent_or_longer, 10); }));
}

}  // namespace tendon::demo
