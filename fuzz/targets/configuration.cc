// JSON that stands alone: sizes of a model, policy spec of a converted file, openpi's statistics.
#include "../target.h"
#include "checkpoint/json.h"
#include "model/config_file.h"
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
  fuzz::taken({Fault::checkpoint}, [&] {
    const PolicySpec around = read_policy_spec(json, "fuzz.json");
    const nlohmann::json written = policy_spec_json(around);
    fuzz::require(policy_spec_json(read_policy_spec(written, "again")) == written);
  });
  file.fill(text);
  for (const bool quantiles : {false, true})
    fuzz::taken({Fault::checkpoint}, [&] {
      const Statistics s = read_norm_stats(file.path(), quantiles);
      fuzz::require(s.state.normalize(s.state.centre).size() == s.state.centre.size());
    });
  return 0;
}
