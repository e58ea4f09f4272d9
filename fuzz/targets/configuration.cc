// JSON that stands alone: sizes of a model, surroundings of a converted file, openpi's statistics.
#include "../target.h"
#include "checkpoint/json.h"
#include "model/config_file.h"
#include "policy/statistics.h"
#include "policy/surroundings_json.h"

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
    const Surroundings around = read_surroundings(json, "fuzz.json");
    const nlohmann::json written = surroundings_json(around);
    fuzz::require(surroundings_json(read_surroundings(written, "again")) == written);
  });
  file.fill(text);
  for (const bool quantiles : {false, true})
    fuzz::taken({Fault::checkpoint}, [&] {
      const Statistics s = read_norm_stats(file.path(), quantiles);
      fuzz::require(s.state.normalize(s.state.centre).size() == s.state.centre.size());
    });
  return 0;
}
