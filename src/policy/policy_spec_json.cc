#include "policy/policy_spec_json.h"

#include <nlohmann/json.hpp>

#include "tensor/check.h"

namespace tendon {
namespace {

using nlohmann::json;

json normalizer_json(const Normalizer& n) {
  return {{"family", n.family == NormFamily::openpi ? "openpi" : "lerobot"},
          {"method", name(n.method)},
          {"eps", n.eps},
          {"centre", n.centre},
          {"range", n.range},
          {"q01", n.q01},
          {"q99", n.q99}};
}

Normalizer read_normalizer(const json& j, const std::string& file) {
  Normalizer n{.family = j.at("family") == "openpi" ? NormFamily::openpi : NormFamily::lerobot,
               .method = norm_method(j.at("method").get<std::string>(), file),
               .eps = j.at("eps"),
               .centre = j.at("centre"),
               .range = j.at("range")};
  // Files of earlier releases have no quantiles.
  const std::vector<double> none;
  n.q01 = j.value("q01", none);
  n.q99 = j.value("q99", none);
  ensure(n.q01.size() == n.q99.size() &&
             (n.q01.empty() || n.method == NormMethod::identity || n.q01.size() == n.centre.size()),
         Fault::checkpoint, "{}: {} and {} quantiles beside {} statistics", file, n.q01.size(),
         n.q99.size(), n.centre.size());
  return n;
}

}  // namespace

json policy_spec_json(const PolicySpec& s) {
  json j{{"robot", name(s.robot)},
         {"adapt_to_pi", s.adapt_to_pi},
         {"cameras", s.cameras},
         {"rename", s.rename},
         {"required", s.required},
         {"resizer", s.resizer == Resizer::openpi ? "openpi" : "lerobot"},
         {"prompt_style", s.prompt.style == PromptStyle::openpi ? "openpi" : "lerobot"},
         {"state_in_prompt", s.prompt.state_in_prompt},
         {"tokens_max", s.prompt.tokens_max},
         {"state", normalizer_json(s.state)},
         {"action", normalizer_json(s.action)},
         {"state_dim", s.state_dim},
         {"action_dim", s.action_dim},
         {"relative", s.delta},
         {"action_names", s.action_names}};
  if (s.prompt.padded_state) j["padded_state"] = *s.prompt.padded_state;
  if (s.default_prompt) j["default_prompt"] = *s.default_prompt;
  if (s.folded_vocab) j["folded_vocab"] = *s.folded_vocab;
  return j;
}

PolicySpec read_policy_spec(const json& j, const std::string& file) {
  try {
    PolicySpec s{.robot = robot_named(j.at("robot").get<std::string>()),
                 .adapt_to_pi = j.at("adapt_to_pi"),
                 .cameras = j.at("cameras"),
                 .rename = j.at("rename"),
                 .required = j.at("required"),
                 .resizer = j.at("resizer") == "openpi" ? Resizer::openpi : Resizer::lerobot,
                 .state = read_normalizer(j.at("state"), file),
                 .action = read_normalizer(j.at("action"), file),
                 .state_dim = j.at("state_dim"),
                 .action_dim = j.at("action_dim"),
                 .delta = j.at("relative"),
                 .action_names = j.at("action_names")};
    s.prompt = {
        .style = j.at("prompt_style") == "openpi" ? PromptStyle::openpi : PromptStyle::lerobot,
        .state_in_prompt = j.at("state_in_prompt"),
        .tokens_max = j.at("tokens_max")};
    if (j.contains("padded_state")) s.prompt.padded_state = j.at("padded_state").get<int64_t>();
    if (j.contains("default_prompt")) s.default_prompt = j.at("default_prompt").get<std::string>();
    if (j.contains("folded_vocab")) s.folded_vocab = j.at("folded_vocab").get<int64_t>();
    return s;
  } catch (const std::exception& e) {  // also of a robot or a method that nobody knows
    fail(Fault::checkpoint, "{}: policy spec: {}", file, e.what());
  }
}

}  // namespace tendon
