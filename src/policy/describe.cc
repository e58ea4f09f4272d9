// What `tendon inspect` shows.
#include <map>

#include "model/weights.h"
#include "policy/open_model.h"
#include "policy/policy_spec_json.h"
#include "tensor/check.h"

namespace tendon {
namespace {

using nlohmann::json;

json describe_statistics(const Normalizer& n) {
  const bool mean = n.method == NormMethod::mean_std;
  json rows = json::array();
  for (size_t d = 0; d < n.centre.size(); ++d)
    rows.push_back(
        {{"dim", d}, {mean ? "mean" : "low", n.centre[d]}, {mean ? "std" : "high", n.range[d]}});
  return {{"method", name(n.method)}, {"formulas", name(n.family)}, {"values", rows}};
}

json describe_spec(const OpenedModel& m) {
  const PolicySpec& s = m.spec;
  json relative = json::array();
  if (const DeltaActions* delta = find<DeltaActions>(s.transforms))
    for (size_t d = 0; d < delta->mask.size(); ++d)
      if (delta->mask[d]) relative.push_back(d);
  return {{"robot", s.robot},
          {"cameras", robot_cameras(s)},
          {"camera_slots", s.slots},
          {"resize", s.resizer == Family::openpi ? "Pillow bilinear, antialiased"
                                                 : "torch bilinear, not antialiased"},
          {"state_dim", s.state_dim},
          {"action_names", s.action_names},
          {"relative_action_dims", relative},
          {"prompt",
           {{"style", name(s.prompt.style)},
            {"state_in_prompt", s.prompt.state_in_prompt},
            {"tokens_max", s.prompt.tokens_max},
            {"default", s.default_prompt ? json(*s.default_prompt) : json()},
            {"tokenizer", m.tokenizer.empty() ? json() : json(m.tokenizer)}}}};
}

// bfp8: 16 values share an exponent.
int64_t weight_bytes(int64_t values, std::string precision) {
  // Of modules that differ, the first is the rule; a plan is an upper bound.
  if (precision.find("=bf16") != std::string::npos) precision = "bf16";
  precision.resize(std::min(precision.find(','), precision.size()));
  if (precision == "bfp8") return values * 17 / 16;
  return values * (precision == "int8" ? 1 : precision == "bf16" ? 2 : 4);
}

struct Group {
  int64_t tensors = 0, parameters = 0, bytes = 0;
};

}  // namespace

MemoryPlan plan_memory(const OpenedModel& m, const OpenOptions& o, bool table_on_device) {
  const Config& c = m.config;
  const bool generated = m.weights->tensors().empty();
  const std::string& precision = m.precision.empty() ? o.precision : m.precision;
  MemoryPlan plan;
  for (const Parameter& p : parameters(c)) {
    const bool table = p.part == Part::embedding;
    if (table && !table_on_device && !generated) continue;  // mapped: rows are read on demand
    plan.weights += weight_bytes(p.shape.count(), p.part == Part::heads      ? "f32"
                                                  : table && table_on_device ? "bf16"
                                                                             : precision);
  }
  const int64_t image_rows = c.cameras * c.vision.tokens();
  const int64_t rows = image_rows + c.max_token_len + c.horizon + 1;
  plan.kv_cache = 2 * c.vlm.depth * rows * c.vlm.kv_heads * c.vlm.head_dim * 4;
  const int64_t prefix = rows * (2 * c.vlm.mlp + 2 * c.vlm.width) * 4;
  const int64_t vision = image_rows * (c.vision.mlp + 5 * c.vision.width) * 4;
  plan.activations = std::max(prefix, vision);
  return plan;
}

json tendon_json(const OpenedModel& m) {
  json all = config_json(m.config);
  all["robot"] = policy_spec_json(m.spec);
  return all;
}

json describe_model(const OpenedModel& m, const OpenOptions& options, bool table_on_device) {
  const NamedTensors& stored = m.weights->tensors();
  std::map<Part, Group> groups;
  Group all;
  for (const Parameter& p : parameters(m.config)) {
    const auto file = stored.find(p.name);
    const int64_t bytes = file == stored.end() ? weight_bytes(p.shape.count(), m.precision)
                                               : p.shape.count() * byte_size(file->second.dtype);
    for (Group* g : {&groups[p.part], &all}) {
      ++g->tensors;
      g->parameters += p.shape.count();
      g->bytes += bytes;
    }
  }
  const auto line = [](const std::string& what, const Group& g) {
    return json{
        {"group", what}, {"tensors", g.tensors}, {"parameters", g.parameters}, {"bytes", g.bytes}};
  };
  const MemoryPlan plan = plan_memory(m, options, table_on_device);
  const json memory{{"weights", plan.weights},
                    {"kv_cache", plan.kv_cache},
                    {"activations", plan.activations},
                    {"total", plan.total()}};
  json tensors = json::array();
  for (const auto& [part, group] : groups) tensors.push_back(line(std::string(name(part)), group));
  tensors.push_back(line("all", all));
  json result{{"layout", m.layout},
              {"source", m.weights->description()},
              {"config", config_json(m.config)},
              {"tensors", tensors},
              {"unused_tensors", m.unused},
              {"statistics",
               {{"state", describe_statistics(m.spec.normalize().state)},
                {"action", describe_statistics(m.spec.normalize().action)}}},
              {"memory_bytes", memory},
              {"notes", m.notes}};
  result.update(describe_spec(m));
  return result;
}

}  // namespace tendon
