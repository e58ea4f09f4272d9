#include "model/config_file.h"

#include <algorithm>

#include "checkpoint/json.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

[[noreturn]] void wrong_type(const nlohmann::json& json, const std::string& key,
                             const std::string& file, const char* expected) {
  fail(Fault::usage, "{}: '{}' is {}, expected {}", file, key, json.at(key).dump().substr(0, 60),
       expected);
}

// Reads the sizes of one tower, or ("") of the whole model; keys that are neither these nor `known`
// are errors.
void read_sizes(const nlohmann::json& json, const std::string& file, Config& config,
                const std::string& tower, std::vector<std::string> known = {}) {
  ensure(json.is_object(), Fault::usage, "{}: expected an object, got {}", file, json.type_name());
  for (const Size& s : sizes(config)) {
    if (s.tower != tower) continue;
    known.push_back(s.name);
    if (!json.contains(s.name)) continue;
    if (!json.at(s.name).is_number_integer()) wrong_type(json, s.name, file, "an integer");
    *s.value = json_int(json, s.name, file);
  }
  for (const auto& [key, value] : json.items())
    ensure(std::ranges::find(known, key) != known.end(), Fault::usage,
           "{}: unknown key '{}'; nearest: '{}'", file, key, nearest(key, known));
}

}  // namespace

Config read_config(const nlohmann::json& json, const std::string& file,
                   const std::optional<Config>& base) {
  ensure(json.is_object(), Fault::usage, "{}: expected an object, got {}", file, json.type_name());
  const bool golden = json.contains("format") && json.at("format") == "tendon-golden-1";
  Config c = base.value_or(Config{});
  if (json.contains("policy")) {
    if (!json.at("policy").is_string()) wrong_type(json, "policy", file, "a string");
    const std::string policy = json_string(json, "policy", file);
    ensure(policy == "pi0" || policy == "pi05", Fault::usage,
           "{}: policy is '{}', expected 'pi0' or 'pi05'", file, policy);
    const PolicyType type = policy == "pi05" ? PolicyType::pi05 : PolicyType::pi0;
    if (!base) c = full_size(type);
    ensure(c.policy == type, Fault::usage, "{}: policy is '{}' but the model is '{}'", file, policy,
           name(c.policy));
  }
  std::vector<std::string> others = {"format", "policy",     "vision",     "vlm",
                                     "expert", "min_period", "max_period", "robot"};
  if (golden)  // says more than sizes
    for (const auto& [key, value] : json.items()) others.push_back(key);
  read_sizes(json, file, c, "", others);
  for (const char* tower : {"vision", "vlm", "expert"})
    if (json.contains(tower))
      read_sizes(json.at(tower), fmt::format("{}: {}", file, tower), c, tower);
  for (const auto& [key, place] :
       {std::pair("min_period", &c.min_period), {"max_period", &c.max_period}}) {
    if (!json.contains(key)) continue;
    if (!json.at(key).is_number()) wrong_type(json, key, file, "a number");
    *place = json_number(json, key, file);
  }
  check(c);
  return c;
}

nlohmann::json config_json(const Config& c) {
  nlohmann::json json{
      {"policy", name(c.policy)}, {"min_period", c.min_period}, {"max_period", c.max_period}};
  Config copy = c;
  for (const Size& s : sizes(copy)) (s.tower.empty() ? json : json[s.tower])[s.name] = *s.value;
  return json;
}

}  // namespace tendon
