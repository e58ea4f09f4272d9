#include "policy/lerobot_0_4.h"

#include <fmt/format.h>

namespace tendon {
namespace {

bool pads_state(const PolicySpec& s, const Config& c, const OpenOptions& o) {
  return o.state_in_prompt.value_or(s.prompt.state_in_prompt) && s.state_dim < c.state_dim;
}

}  // namespace

std::optional<bool> of_lerobot_0_4(const nlohmann::json& config, const Processors& p,
                                   const WeightSource& weights) {
  if (p.relative_step) return false;
  if (!config.contains("rtc_config")) return true;
  const NamedTensors& all = weights.tensors();
  const auto head = all.find(kPaliGemma + "lm_head.weight"), table = all.find(kTokenTable);
  if (weights.adapter() || head == all.end() || table == all.end()) return {};
  return head->second.bytes.data() == table->second.bytes.data();
}

void follow_lerobot_0_4(const std::string& file, const nlohmann::json& config, const OpenOptions& o,
                        OpenedModel& m) {
  PolicySpec& s = m.spec;
  s.dark_bars = true;
  const bool sums = !config.contains("use_peft");
  if (sums) s.sequence = TimeSequence::lerobot_sum;
  const bool padded = pads_state(s, m.config, o);
  if (padded) s.prompt.padded_state = m.config.state_dim;
  m.notes.push_back(fmt::format(
      "{}: of lerobot 0.4: {}{}bars around pictures that are not square are -3; {}"
      "--no-dark-bars says otherwise",
      file, sums ? "denoising times are added up, " : "",
      padded ? "the state is padded in the prompt, " : "", padded ? "--no-pad-state, " : ""));
}

void warn_of_lerobot_0_4(const std::string& file, bool square, const OpenOptions& o,
                         OpenedModel& m) {
  const std::string age = fmt::format(
      "{}: policy_preprocessor.json has no relative_actions_processor: it may be of lerobot 0.4, "
      "which",
      file);
  if (pads_state(m.spec, m.config, o) && !m.spec.prompt.padded_state && !o.pad_state_in_prompt)
    m.warnings.push_back(age +
                         " padded the state in the prompt; say --pad-state for such a model, "
                         "--no-pad-state for others");
  if (!square && !m.spec.dark_bars && !o.dark_bars)
    m.warnings.push_back(age +
                         " filled the bars around pictures that are not square with -3; say "
                         "--dark-bars for such a model, --no-dark-bars for others");
}

}  // namespace tendon
