// labels: loop
// The embedded policies judged by what they achieve, on every backend and in every precision.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "tendon/table_policy.h"
#include "test_files.h"

namespace tendon::demo {
namespace {

constexpr uint64_t kFirstSeed = 100000;

struct Setting {
  std::string model, backend = "cpu", precision = "f32", device;
};

Policy policy_of(const Setting& s) {
  OpenOptions options{.backend = s.backend, .precision = s.precision, .device = s.device};
  options.threads = 1;
  return table_policy(std::make_shared<Engine>(Engine::open(s.model, options)));
}

struct Outcome {
  Rate rate;
  double jump = 0;  // mean of the episodes' largest
};

Outcome judge(const Policy& policy, int count, Verb verb, Pairs pairs, LoopOptions loop = {},
              bool wrong_prompt = false) {
  Outcome outcome;
  for (const Trial& trial : trials(count, kFirstSeed, {verb}, {pairs})) {
    const Episode episode = trial.episode();
    if (wrong_prompt) loop.prompt = other_task(episode).prompt();
    const Record record = run_episode(episode, policy, loop, trial.seed);
    ++outcome.rate.episodes;
    outcome.rate.successes += record.solved;
    outcome.jump += record.largest_jump / count;
  }
  return outcome;
}

void note(std::string_view what, const Rate& rate) {
  ::testing::Test::RecordProperty(std::string(what), fmt::format("{:.1f} %", 100 * rate.rate()));
  fmt::print("{}: {} of {}\n", what, rate.successes, rate.episodes);
}

class EveryPolicy : public ::testing::TestWithParam<std::string> {};

std::string identifier(std::string text) {
  std::ranges::replace(text, ':', '_');
  return text;
}

const auto kPolicies = ::testing::Values("demo:pi0", "demo:pi05");

// Fixed seeds. Rounding may cost two points of what f32 achieves, or two episodes.
void solve_in_every_precision(const std::string& model, int count) {
  const std::vector<Setting> settings = {{.model = model},
                                         {.model = model, .precision = "bf16"},
                                         {.model = model, .precision = "int8"},
                                         {model, "ttnn", "bf16", "fake"}};
  std::map<Verb, double> exact;
  for (const Setting& setting : settings) {
    const Policy policy = policy_of(setting);
    for (const Verb verb : {Verb::reach, Verb::push}) {
      const Rate rate = judge(policy, count, verb, Pairs::seen).rate;
      note(fmt::format("{} {}, {}", setting.backend, setting.precision, name(verb)), rate);
      EXPECT_GE(rate.rate(), verb == Verb::reach ? 0.95 : 0.85);
      EXPECT_GE(rate.rate(),
                exact.try_emplace(verb, rate.rate()).first->second - std::max(0.02, 2.0 / count));
    }
  }
}

}  // namespace

TEST_P(EveryPolicy, solves_its_tasks_in_every_precision) {
  solve_in_every_precision(GetParam(), 30);
}
TEST_P(EveryPolicy, slow_solves_two_hundred_of_each_task_in_every_precision) {
  solve_in_every_precision(GetParam(), 200);
}

TEST_P(EveryPolicy, finds_pairs_of_colour_and_shape_that_it_never_saw) {
  const Policy policy = policy_of({.model = GetParam()});
  Rate both;
  for (const Verb verb : {Verb::reach, Verb::push}) {
    const Rate rate = judge(policy, 100, verb, Pairs::held_out).rate;
    note(name(verb), rate);
    both.episodes += rate.episodes;
    both.successes += rate.successes;
  }
  EXPECT_GE(both.rate(), 0.70);
}

TEST_P(EveryPolicy, uses_language_vision_and_state) {
  const Policy policy = policy_of({.model = GetParam()});
  double whole = 0, without_state = 0;
  for (const Verb verb : {Verb::reach, Verb::push}) {
    const std::string task = std::string(name(verb)) + ", ";
    const Rate wrong = judge(policy, 30, verb, Pairs::seen, {}, true).rate;
    note(task + "wrong prompt", wrong);
    EXPECT_LT(wrong.rate(), 0.15);
    const Rate blank = judge(policy, 30, verb, Pairs::seen, {.blank_images = true}).rate;
    note(task + "blank images", blank);
    EXPECT_LT(blank.rate(), 0.15);
    const Rate zero = judge(policy, 30, verb, Pairs::seen, {.zero_state = true}).rate;
    note(task + "zero state", zero);
    without_state += zero.rate() / 2;
    whole += judge(policy, 30, verb, Pairs::seen).rate.rate() / 2;
  }
  EXPECT_LT(without_state, whole - 0.1);
}

// 0, 50 and 200 ms between an observation and its actions.
TEST_P(EveryPolicy, real_time_chunking_is_smoother_under_latency) {
  const Policy policy = policy_of({.model = GetParam()});
  for (const int delay : {0, 1, 2}) {
    const Outcome plain = judge(policy, 40, Verb::push, Pairs::seen, {.delay = delay});
    const Outcome guided =
        judge(policy, 40, Verb::push, Pairs::seen, {.delay = delay, .guided = true});
    note(fmt::format("delay {}", delay), plain.rate);
    note(fmt::format("delay {}, guided", delay), guided.rate);
    fmt::print("jump {:.3f}, guided {:.3f}\n", plain.jump, guided.jump);
    EXPECT_LT(guided.jump, plain.jump / 1.5);
    EXPECT_GE(plain.rate.rate(), 0.75);
    EXPECT_GE(guided.rate.rate(), 0.65);
  }
}
INSTANTIATE_TEST_SUITE_P(Both, EveryPolicy, kPolicies,
                         [](const auto& test) { return identifier(test.param); });

}  // namespace tendon::demo
