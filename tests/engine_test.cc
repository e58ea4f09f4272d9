// labels: unit
// Facts about whole calls of a small synthetic model through the public library.
#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <limits>

#include "damaged_checkpoint.h"
#include "tendon/opened.h"
#include "tensor/random.h"

using namespace tendon;

namespace {

const std::string kSmall = R"({
  "vision": {"image": 28, "patch": 14, "width": 16, "heads": 2, "mlp": 24, "depth": 2},
  "vlm": {"width": 24, "mlp": 40, "heads": 2, "kv_heads": 1, "head_dim": 8, "depth": 3,
          "vocab": 512},
  "expert": {"width": 16, "mlp": 24, "heads": 2, "kv_heads": 1, "head_dim": 8, "depth": 3},
  "action_dim": 6, "state_dim": 5, "horizon": 4, "num_steps": 3, "max_token_len": 200,
  "cameras": 3})";

Engine small(const std::string& kind, OpenOptions options = {}) {
  static const Scratch scratch("engine");
  if (options.config.empty()) options.config = scratch.write("small.json", kSmall).string();
  return Engine::open("synthetic:" + kind, options);
}

Image picture(uint8_t seed) {
  Image image{20, 30, std::vector<uint8_t>(20 * 30 * 3)};
  for (size_t i = 0; i < image.rgb.size(); ++i)
    image.rgb.owned()[i] = static_cast<uint8_t>(i * 37 + seed * 91 + i * i % 11);
  return image;
}

Observation observe(const Engine& engine) {
  Observation o;
  uint8_t seed = 0;
  for (const std::string& camera : engine.cameras()) o.images[camera] = picture(seed++);
  o.prompt = "fold the towel";
  o.state = {0.1, -0.2, 0.3, 0.4, -0.5};
  return o;
}

// One robot with one way to normalise, around the small network.
struct Meeting {
  std::string robot = "lerobot";
  Family family = Family::lerobot;
  NormMethod method = NormMethod::mean_std;
  bool relative = false, adapt_to_pi = true, quantiles = true;
};

std::string to_text(const Meeting& m) {
  return fmt::format("{} {} {}{}{}", m.robot, name(m.family), name(m.method),
                     m.relative ? " relative" : "", m.adapt_to_pi ? "" : " not adapted");
}

Normalizer some_statistics(const Meeting& m, int64_t dim) {
  Normalizer n{.family = m.family, .method = m.method};
  for (int64_t i = 0; i < dim; ++i) {
    const double centre = 0.1 * static_cast<double>(i % 5) - 0.25;
    const double width = 0.4 + 0.07 * static_cast<double>(i % 7);
    const bool mean_std = m.method == NormMethod::mean_std;
    n.centre.push_back(mean_std ? centre : centre - width);
    n.range.push_back(mean_std ? width : centre + width);
    if (!m.quantiles) continue;
    n.q01.push_back(centre - 2 * width);
    n.q99.push_back(centre + 1.5 * width);
  }
  return n;
}

struct Robotic {
  std::unique_ptr<OpenedEngine> engine;
  Observation observation{.prompt = "fold the towel"};

  explicit Robotic(const Meeting& m) {
    const Scratch scratch("robotic");
    std::string wide = kSmall;
    wide.replace(wide.find("\"action_dim\": 6, \"state_dim\": 5"), 31,
                 R"("action_dim": 16, "state_dim": 16)");
    OpenedModel opened =
        open_model("synthetic:pi0", {.config = scratch.write("wide.json", wide).string()});
    PolicySpec& s = opened.spec;
    s.state_dim = m.robot == "aloha" ? 14 : 8;
    s.action_dim = m.robot == "aloha" ? 14 : m.robot == "droid" ? 8 : 7;
    s.action_names.assign(static_cast<size_t>(s.action_dim), "joint");
    DeltaActions delta{.family = m.family};
    for (int64_t d = 0; d < s.action_dim; ++d) delta.mask.push_back(d % 7 != 6);
    s.transforms.clear();
    if (m.robot == "aloha" && m.adapt_to_pi) s.transforms.push_back(AlohaJoints{});
    if (m.relative) s.transforms.push_back(delta);
    s.transforms.push_back(
        Normalize{some_statistics(m, s.state_dim), some_statistics(m, s.action_dim)});
    for (int64_t d = 0; d < s.state_dim; ++d)
      observation.state.push_back(0.3 - 0.05 * static_cast<double>(d));
    for (const std::string& camera : s.slots) observation.images[camera] = picture(3);
    engine = open_engine(opened, {.backend = "reference"});
  }

  Actions infer(const std::optional<PreviousChunk>& previous = {}) {
    return engine->policy->infer(observation, {.seed = 5, .previous = previous});
  }
};

// The first three rows, in the model's units or in the robot's.
PreviousChunk previous_of(const Actions& a, bool in_units) {
  PreviousChunk chunk{.rows = 3, .dim = a.dim, .schedule = GuidanceSchedule::ones};
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t d = 0; d < a.dim; ++d)
      if (in_units)
        chunk.actions.push_back(a.values[static_cast<size_t>(r * a.dim + d)]);
      else
        chunk.normalized.push_back(a.normalized[static_cast<size_t>(r * a.model_dim + d)]);
  return chunk;
}

std::vector<Meeting> meetings() {
  std::vector<Meeting> all;
  for (const bool relative : {false, true}) {
    for (const char* robot : {"aloha", "droid", "libero"})
      for (const NormMethod m : {NormMethod::mean_std, NormMethod::quantiles})
        all.push_back({robot, Family::openpi, m, relative});
    all.push_back({"aloha", Family::openpi, NormMethod::mean_std, relative, false});
    for (const NormMethod m : {NormMethod::identity, NormMethod::mean_std, NormMethod::quantiles,
                               NormMethod::min_max, NormMethod::quantile10})
      all.push_back({"lerobot", Family::lerobot, m, relative});
  }
  return all;
}

}  // namespace

TEST(Engine, room_for_48_or_200_prompt_tokens_gives_the_same_bytes) {
  const Scratch scratch("padding");
  std::string shorter = kSmall;
  shorter.replace(shorter.find("200"), 3, "120");
  const auto file = scratch.write("short.json", shorter).string();
  for (const std::string kind : {"pi0", "pi05"}) {
    Engine wide = small(kind), narrow = small(kind, {.config = file});
    EXPECT_EQ(wide.infer(observe(wide)).values, narrow.infer(observe(narrow)).values);
  }
}

TEST(Engine, cameras_beyond_those_of_the_model_are_not_used_and_said_so) {
  Engine engine = Engine::open("demo");
  Observation scene = demo_observation();
  const Actions without = engine.infer(scene);
  scene.images["side"] = picture(9);
  const Actions with = engine.infer(scene);
  EXPECT_EQ(with.values, without.values);
  EXPECT_EQ(with.warnings,
            (std::vector<std::string>{"not used, the model has no such cameras: 'side'"}));
}

TEST(Engine, an_absent_camera_is_masked_and_said_so) {
  Engine engine = small("pi0");
  Observation o = observe(engine);
  const Actions all = engine.infer(o);
  EXPECT_TRUE(all.warnings.empty());
  o.images.erase("left_wrist_0_rgb");
  const Actions two = engine.infer(o);
  EXPECT_NE(all.values, two.values);
  ASSERT_EQ(two.warnings.size(), 1u);
  EXPECT_TRUE(says(two.warnings[0], "left_wrist_0_rgb"));
}

TEST(Engine, every_input_reaches_the_actions) {
  for (const std::string kind : {"pi0", "pi05"}) {
    Engine engine = small(kind);
    const Observation o = observe(engine);
    const std::vector<double> before = engine.infer(o).values;
    for (const std::string& camera : engine.cameras()) {
      Observation changed = o;
      changed.images[camera].rgb.owned()[0] ^= 0x80;
      changed.images[camera].rgb.owned()[900] ^= 0x80;
      EXPECT_NE(engine.infer(changed).values, before) << kind << " " << camera;
    }
    Observation changed = o;
    changed.prompt = "fold the towels";
    EXPECT_NE(engine.infer(changed).values, before);
    changed = o;
    changed.state[4] += 0.25;
    EXPECT_NE(engine.infer(changed).values, before) << kind;
  }
}

TEST(Engine, both_time_sequences_agree_to_a_thousandth_and_differ) {
  Engine engine = small("pi0", {.precision = "f32"});
  const Observation o = observe(engine);
  const Actions a = engine.infer(o), b = engine.infer(o, {.sequence = TimeSequence::openpi});
  EXPECT_NE(a.values, b.values);
  for (size_t i = 0; i < a.values.size(); ++i) EXPECT_NEAR(a.values[i], b.values[i], 1e-3);
}

TEST(Engine, explicit_noise_equals_the_noise_of_its_seed) {
  Engine engine = small("pi0");
  const Observation o = observe(engine);
  std::vector<float> noise(4 * 6);
  normal_noise(11, 0, noise);
  const std::vector<double> actions = engine.infer(o, {.seed = 11}).values;
  EXPECT_EQ(engine.infer(o, {.noise = noise}).values, actions);
  EXPECT_NE(engine.infer(o, {.seed = 12}).values, actions);
}

TEST(Engine, a_call_that_its_poll_ends_leaves_the_engine_as_it_was) {
  Engine engine = small("pi0");
  const Observation seen = observe(engine);
  int64_t polls = 0;
  const Actions whole = engine.infer(seen, {.poll = [&] { ++polls; }});
  ASSERT_GT(polls, 50);
  for (const int64_t last : {int64_t{1}, polls / 2, polls}) {
    int64_t left = last;
    const auto give_up = [&] {
      if (--left == 0) throw std::domain_error("enough");
    };
    EXPECT_THROW(engine.infer(seen, {.poll = give_up}), std::domain_error) << last;
    EXPECT_EQ(engine.infer(seen).values, whole.values) << last;
    EXPECT_EQ(left, 0) << "polled after the call";
  }
}

TEST(PreviousChunk, in_the_robots_units_guides_as_in_the_models_on_every_robot) {
  for (const Meeting& m : meetings()) {
    Robotic robotic(m);
    const Actions free = robotic.infer();
    const Actions expected = robotic.infer(previous_of(free, false));
    expect_close(robotic.infer(previous_of(free, true)).normalized, expected.normalized, 1e-5,
                 to_text(m));
    PreviousChunk other = previous_of(free, true);
    for (double& v : other.actions) v += 0.1;
    EXPECT_NE(robotic.infer(other).normalized, expected.normalized) << to_text(m);
  }
}

TEST(PreviousChunk, relative_actions_are_anchored_at_the_state_of_now) {
  const Meeting m{.relative = true};
  Robotic robotic(m);
  const Actions free = robotic.infer();
  for (double& v : robotic.observation.state) v += 0.125;
  PreviousChunk by_hand = previous_of(free, false);
  const std::vector<double> std = some_statistics(m, free.dim).range;
  for (size_t i = 0; i < by_hand.normalized.size(); ++i) {
    const size_t d = i % static_cast<size_t>(free.dim);
    if (d != 6) by_hand.normalized[i] -= static_cast<float>(0.125 / std[d]);
  }
  expect_close(robotic.infer(previous_of(free, true)).normalized, robotic.infer(by_hand).normalized,
               1e-5, "anchored");
}

TEST(PreviousChunk, is_refused_when_it_is_neither_or_both_or_does_not_fit) {
  Robotic robotic(Meeting{});
  const Actions free = robotic.infer();
  const PreviousChunk good = previous_of(free, true), normal = previous_of(free, false);
  const auto refused_for = [&](const PreviousChunk& from, const std::string& text,
                               const std::function<void(PreviousChunk&)>& change) {
    PreviousChunk bad = from;
    change(bad);
    EXPECT_TRUE(refuses(Fault::input, text, [&] { robotic.infer(bad); }));
  };
  refused_for(good, "21 normalized values and 21 in the robot's units",
              [&](PreviousChunk& c) { c.normalized = normal.normalized; });
  refused_for(good, "give one of them", [](PreviousChunk& c) { c.actions = {}; });
  refused_for(good, "have 3 actions, this robot has 7", [](PreviousChunk& c) {
    c.dim = 3;
    c.rows = 4;
    c.actions.resize(12);
  });
  refused_for(good, "[5, 7] with 21 values; at most [4, 7]", [](PreviousChunk& c) { c.rows = 5; });
  // 1e300 is finite until it meets the model's floats.
  for (const double v : {std::nan(""), std::numeric_limits<double>::infinity(), 1e300})
    refused_for(good, "action 1 of row 1 of the previous chunk is",
                [&](PreviousChunk& c) { c.actions[8] = v; });
  refused_for(normal, "action 1 of row 2 of the previous chunk is nan",
              [](PreviousChunk& c) { c.normalized[15] = NAN; });
  refused_for(normal, "largest weight of nan", [](PreviousChunk& c) { c.max_weight = NAN; });
}

TEST(Quantiles, of_actions_come_in_the_robots_units_at_the_state_of_now) {
  const Meeting m{"aloha", Family::openpi, NormMethod::mean_std, true};
  Robotic robotic(m);
  const Actions a = robotic.infer();
  const Normalizer n = some_statistics(m, 14);
  ASSERT_EQ(a.low.size(), 14u);
  ASSERT_EQ(a.high.size(), 14u);
  for (size_t d = 0; d < 14; ++d) {
    const double state = robotic.observation.state[d];
    double low = n.q01[d] + state, high = n.q99[d] + state;
    if (d == 1 || d == 2 || d == 8 || d == 9) {  // flipped on the way in and on the way out
      low = state - n.q99[d];
      high = state - n.q01[d];
    } else if (d % 7 == 6) {  // grippers: absolute, of another range
      low = (n.q01[d] + 0.5476 + 0.6213) / (1.4910 + 0.6213);
      high = (n.q99[d] + 0.5476 + 0.6213) / (1.4910 + 0.6213);
    }
    EXPECT_NEAR(a.low[d], low, 1e-6) << d;
    EXPECT_NEAR(a.high[d], high, 1e-6) << d;
  }
}

TEST(Quantiles, are_told_for_every_robot_and_change_no_action) {
  for (Meeting m : meetings()) {
    const Actions with = Robotic(m).infer();
    ASSERT_EQ(std::ssize(with.low), with.dim) << to_text(m);
    for (size_t d = 0; d < with.low.size(); ++d) EXPECT_LT(with.low[d], with.high[d]) << to_text(m);
    m.quantiles = false;
    const Actions without = Robotic(m).infer();
    EXPECT_EQ(without.values, with.values) << to_text(m);
    EXPECT_TRUE(without.low.empty() && without.high.empty() && without.state_outside.empty());
  }
}

TEST(Quantiles, a_state_outside_of_them_is_marked_value_by_value) {
  const Meeting m;
  Robotic robotic(m);
  const Normalizer n = some_statistics(m, 8);
  robotic.observation.state = n.q01;
  robotic.observation.state[1] = n.q99[1];
  robotic.observation.state[3] = n.q99[3] + 0.01;
  robotic.observation.state[6] = n.q01[6] - 0.01;
  EXPECT_EQ(robotic.infer().state_outside, std::vector<uint8_t>({0, 0, 0, 1, 0, 0, 1, 0}));
}

TEST(BadInput, in_an_observation_is_refused_by_name) {
  std::vector<std::pair<Pieces, std::function<void(Observation&)>>> rows = {
      {{"'left_wrist_0_rgb'", "'right_wrist_0_rgb'", "nearest: 'base_0_rgb'"},
       [](Observation& o) {
         o.images["bse_0_rgb"] = picture(9);
         o.images.erase("base_0_rgb");
       }},
      {"no image given", [](Observation& o) { o.images.clear(); }},
      {"camera 'left_wrist_0_rgb': the picture of 21 by 30 pixels has 1800 bytes, expected 1890",
       [](Observation& o) { o.images["left_wrist_0_rgb"].height = 21; }}};
  for (const size_t n : {0u, 4u, 6u})
    rows.emplace_back("state", [n](Observation& o) { o.state.assign(n, 0.0); });
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()})
    rows.emplace_back("state[3]", [bad](Observation& o) { o.state[3] = bad; });
  using Prompt = std::optional<std::string>;
  for (const Prompt& bad : {Prompt(""), Prompt(" \n"), Prompt("ab\xFF"), Prompt()})
    rows.emplace_back("prompt", [bad](Observation& o) { o.prompt = bad; });
  for (const std::string kind : {"pi0", "pi05"}) {
    Engine engine = small(kind);
    for (const auto& [words, change] : rows) {
      Observation o = observe(engine);
      change(o);
      EXPECT_TRUE(refuses(Fault::input, words, [&] { engine.infer(o); })) << kind << words.front();
    }
  }
}

TEST(BadInput, a_long_prompt_is_cut_with_one_warning) {
  Engine engine = small("pi0");
  Observation o = observe(engine);
  o.prompt = std::string(500, 'x');
  const Actions cut = engine.infer(o);
  ASSERT_EQ(cut.warnings.size(), 1u);
  EXPECT_TRUE(says(cut.warnings[0], "cut to 200"));
  o.prompt = std::string(600, 'x');
  EXPECT_EQ(engine.infer(o).values, cut.values);
}

TEST(BadInput, noise_and_steps_out_of_range_are_refused) {
  Engine engine = small("pi0");
  const Observation o = observe(engine);
  const auto refused_with = [&](const InferOptions& options) {
    return refuses(Fault::input, "", [&] { engine.infer(o, options); });
  };
  EXPECT_TRUE(refused_with({.noise = {1.f, 2.f}}));
  EXPECT_TRUE(refused_with({.noise = std::vector<float>(24, NAN)}));
  for (const int64_t steps : {0, -1, 1001}) EXPECT_TRUE(refused_with({.steps = steps})) << steps;
}

TEST(Noise, philox_matches_the_published_vectors) {
  // Random123's kat_vectors for philox4x32-10.
  const PhiloxBlock zero = philox({{0, 0, 0, 0}}, 0);
  const uint32_t of_zero[] = {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u};
  const PhiloxBlock ones = philox({{~0u, ~0u, ~0u, ~0u}}, ~uint64_t{0});
  const uint32_t of_ones[] = {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(zero.word[i], of_zero[i]);
    EXPECT_EQ(ones.word[i], of_ones[i]);
  }
}

TEST(Noise, is_standard_normal_and_the_same_everywhere) {
  std::vector<float> noise(200000);
  normal_noise(1, 0, noise);
  double sum = 0, squares = 0, fourth = 0;
  for (const float v : noise) {
    sum += v;
    squares += v * v;
    fourth += std::pow(v, 4);
  }
  const double n = static_cast<double>(noise.size());
  EXPECT_NEAR(sum / n, 0, 0.01);
  EXPECT_NEAR(squares / n, 1, 0.02);
  EXPECT_NEAR(fourth / n, 3, 0.1);
  std::vector<float> part(10);
  normal_noise(1, 0, part);
  for (size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part[i], noise[i]);
}

TEST(Engine, a_robot_with_more_state_or_action_values_than_the_model_is_refused) {
  for (const char* feature :
       {"/input_features/observation.state/shape", "/output_features/action/shape"}) {
    Checkpoint checkpoint("lerobot-pi0");
    checkpoint.options.statistics = "none";
    checkpoint.edit("config.json", [&](nlohmann::json& config) {
      config.at(nlohmann::json::json_pointer(feature)) = {40};
    });
    EXPECT_TRUE(refuses(Fault::checkpoint, "40", [&] { checkpoint.engine(); }));
  }
}

TEST(Engine, empty_cameras_of_lerobot_are_there_once_whether_listed_or_counted) {
  for (const bool listed : {false, true}) {
    Checkpoint checkpoint("lerobot-pi0");
    checkpoint.options.statistics = "none";
    checkpoint.edit("config.json", [&](nlohmann::json& config) {
      nlohmann::json& features = config.at("input_features");
      const nlohmann::json third = features.at("observation.images.right_wrist_0_rgb");
      features.erase("observation.images.right_wrist_0_rgb");
      if (listed) features["observation.images.empty_camera_0"] = third;
      config["empty_cameras"] = 1;
    });
    const std::vector<std::string> cameras = checkpoint.engine().cameras();
    EXPECT_EQ(cameras.size(), 3u);
    EXPECT_EQ(std::ranges::count(cameras, "empty_camera_0"), 1);
  }
}
