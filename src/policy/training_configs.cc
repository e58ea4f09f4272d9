#include "policy/training_configs.h"

#include "checkpoint/json.h"
#include "policy/policy_spec_json.h"
#include "tensor/check.h"
#include "tensor/embed.h"
#include "tensor/nearest.h"

TENDON_EMBED(char, tendon_openpi, TENDON_ASSETS "/openpi.json");

namespace tendon {
namespace {

using nlohmann::json;

const json& openpi() {
  static const json all = parse_json({tendon_openpi, tendon_openpi_end}, "assets/openpi.json");
  return all;
}

std::vector<std::string> names_of(const json& object) {
  std::vector<std::string> names;
  for (const auto& entry : object.items()) names.push_back(entry.key());
  return names;
}

}  // namespace

const json& robot_json(const std::string& name, const std::string& where) {
  const json& robots = openpi().at("robots");
  ensure(robots.contains(name), Fault::usage, "{}: unknown robot '{}'; nearest: '{}'", where, name,
         nearest(name, names_of(robots)));
  return robots.at(name);
}

const PolicySpec& robot_named(const std::string& name) {
  static const std::map<std::string, PolicySpec> all = [] {
    std::map<std::string, PolicySpec> read;
    for (const auto& [key, robot] : openpi().at("robots").items())
      read[key] = read_policy_spec(robot, key);
    return read;
  }();
  return all.at(name);
}

std::vector<std::string> training_config_names() { return names_of(openpi().at("configs")); }

json training_config(const std::string& name) {
  const json& configs = openpi().at("configs");
  ensure(configs.contains(name) || !name.starts_with("pi0_fast"), Fault::usage,
         "--config {}: pi0-FAST generates tokens, not flows; this engine runs pi0 and pi0.5", name);
  ensure(configs.contains(name), Fault::usage,
         "--config {}: no such file, and no openpi training config of that name; nearest: '{}'",
         name, nearest(name, names_of(configs)));
  return configs.at(name);
}

}  // namespace tendon
