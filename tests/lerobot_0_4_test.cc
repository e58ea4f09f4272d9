// labels: unit
// What lerobot 0.4 did in another way: done where its files can be told from later ones, said where
// not.
#include "policy/lerobot_0_4.h"

#include "reported_checkpoint.h"

using namespace tendon;
using nlohmann::json;

TEST(Lerobot04, is_said_where_a_checkpoint_may_be_of_it) {
  const Change no_rtc = [](Checkpoint& c) {
    c.edit("config.json", [](json& j) { j.erase("rtc_config"); });
  };
  const Change wide = [](Checkpoint& c) {
    c.edit("config.json", [](json& j) {
      j["input_features"]["observation.images.left_wrist_0_rgb"]["shape"] = {3, 480, 640};
    });
  };
  const auto without_tensor = [](const std::string& end) {
    return [=](Checkpoint& c) {
      c.tensors(c.kWeights, [&](std::vector<HostTensor>& all) {
        std::erase_if(all, [&](const HostTensor& t) { return t.name.ends_with(end); });
      });
    };
  };
  const Change padded = [](Checkpoint& c) { c.options.pad_state_in_prompt = true; };
  const Change narrow = [](Checkpoint& c) { c.options.pad_state_in_prompt = false; };
  const Change bright = [](Checkpoint& c) { c.options.dark_bars = false; };
  // Others' conversions have no head beside the table.
  const Change may_be = all({without_relative_steps, without_tensor("paligemma.lm_head.weight")});
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
    const PolicySpec& s = opened(checkpoint).spec;
    EXPECT_EQ(s.sequence, sequence);
    return std::pair(s.prompt.padded_state.value_or(0), s.dark_bars);
  };
  const Change is = all({without_relative_steps, without_tensor("embed_tokens.weight")});
  for (const Change& certain : {is, Change(all({without_relative_steps, no_rtc}))}) {
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

  const Change no_peft = [](Checkpoint& c) {
    c.edit("config.json", [](json& j) { j.erase("use_peft"); });
  };
  EXPECT_EQ(variant("lerobot-pi0", no_peft), std::pair(int64_t{0}, false));
  sequence = TimeSequence::lerobot_sum;  // of 0.4.0 to 0.4.2
  EXPECT_EQ(variant("lerobot-pi0", all({is, no_peft})), std::pair(int64_t{0}, true));
}
