// JSON that stands alone: sizes of a model, a robot (alone and inside of them), openpi's
// statistics.
#include "../target.h"
#include "checkpoint/json.h"
#include "model/config.h"
#include "policy/policy_spec_json.h"
#include "policy/statistics.h"

using namespace tendon;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryFile file;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  nlohmann::json json;
  if (!fuzz::taken({Fault::checkpoint}, [&] { json = parse_json(text, "fuzz.json"); })) return 0;
  fuzz::taken({Fault::checkpoint, Fault::usage}, [&] {
    const Config config = read_config(json, "fuzz.json");
    fuzz::require(config_json(read_config(config_json(config), "again")) == config_json(config));
  });
  for (const nlohmann::json& robot :
       {json, json.is_object() ? json.value("robot", nlohmann::json()) : nlohmann::json()})
    fuzz::taken({Fault::checkpoint, Fault::usage}, [&] {
      const PolicySpec spec = read_policy_spec(robot, "fuzz.json");
      const nlohmann::json written = policy_spec_json(spec);
      fuzz::require(policy_spec_json(read_policy_spec(written, "again")) == written);
      Config config;
      check_spec(spec, config);
      const States states =
          state_to_model(spec.transforms, std::vector<double>(static_cast<size_t>(spec.state_dim)));
      std::vector<double> row(static_cast<size_t>(spec.action_dim));
      actions_to_robot(spec.transforms, states, row);
      actions_to_model(spec.transforms, states, row);
    });
  file.fill(text);
  for (const bool quantiles : {false, true})
    fuzz::taken({Fault::checkpoint}, [&] {
      const Normalize s = read_norm_stats(file.path(), quantiles);
      std::vector<double> row = s.state.centre;
      s.state.normalize(row);
      fuzz::require(row.size() == s.state.range.size());
    });
  return 0;
}
