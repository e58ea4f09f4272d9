#include "model/config_file.h"

#include <algorithm>
#include <set>

#include "checkpoint/json.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {
namespace {

using Fields = std::vector<std::pair<std::string, int64_t*>>;

[[noreturn]] void wrong_type(const nlohmann::json& json, const std::string& key,
                             const std::string& file, const char* expected) {
  fail(Fault::usage, "{}: '{}' is {}, expected {}", file, key, json.at(key).dump().substr(0, 60),
       expected);
}

// Reads the known integer members; anything else is an error unless `extra` allows it.
void read_fields(const nlohmann::json& json, const std::string& file, const Fields& fields,
                 const std::set<std::string>& others, bool extra) {
  ensure(json.is_object(), Fault::usage, "{}: expected an object, got {}", file, json.type_name());
  std::vector<std::string> known(others.begin(), others.end());
  for (const auto& [name, place] : fields) known.push_back(name);
  for (const auto& [key, value] : json.items())
    ensure(extra || std::ranges::find(known, key) != known.end(), Fault::usage,
           "{}: unknown key '{}'; nearest: '{}'", file, key, nearest(key, known));
  for (const auto& [name, place] : fields) {
    if (!json.contains(name)) continue;
    if (!json.at(name).is_number_integer()) wrong_type(json, name, file, "an integer");
    *place = json_int(json, name, file);
  }
}

Fields gemma_fields(GemmaConfig& c) {
  return {{"width", &c.width},       {"mlp", &c.mlp},           {"heads", &c.heads},
          {"kv_heads", &c.kv_heads}, {"head_dim", &c.head_dim}, {"depth", &c.depth}};
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
  read_fields(json, file,
              {{"action_dim", &c.action_dim},
               {"state_dim", &c.state_dim},
               {"horizon", &c.horizon},
               {"num_steps", &c.num_steps},
               {"max_token_len", &c.max_token_len},
               {"cameras", &c.cameras}},
              {"format", "policy", "vision", "vlm", "expert", "min_period", "max_period"}, golden);
  if (json.contains("vision")) {
    VisionConfig& v = c.vision;
    read_fields(json.at("vision"), file + ": vision",
                {{"image", &v.image},
                 {"patch", &v.patch},
                 {"width", &v.width},
                 {"heads", &v.heads},
                 {"mlp", &v.mlp},
                 {"depth", &v.depth}},
                {}, false);
  }
  Fields vlm = gemma_fields(c.vlm);
  vlm.emplace_back("vocab", &c.vocab);
  if (json.contains("vlm")) read_fields(json.at("vlm"), file + ": vlm", vlm, {}, false);
  if (json.contains("expert"))
    read_fields(json.at("expert"), file + ": expert", gemma_fields(c.expert), {}, false);
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
  const auto gemma = [](const GemmaConfig& g) {
    return nlohmann::json{{"width", g.width},       {"mlp", g.mlp},           {"heads", g.heads},
                          {"kv_heads", g.kv_heads}, {"head_dim", g.head_dim}, {"depth", g.depth}};
  };
  nlohmann::json vlm = gemma(c.vlm);
  vlm["vocab"] = c.vocab;
  return {{"policy", name(c.policy)},
          {"vision",
           {{"image", c.vision.image},
            {"patch", c.vision.patch},
            {"width", c.vision.width},
            {"heads", c.vision.heads},
            {"mlp", c.vision.mlp},
            {"depth", c.vision.depth}}},
          {"vlm", vlm},
          {"expert", gemma(c.expert)},
          {"action_dim", c.action_dim},
          {"state_dim", c.state_dim},
          {"horizon", c.horizon},
          {"num_steps", c.num_steps},
          {"max_token_len", c.max_token_len},
          {"cameras", c.cameras},
          {"min_period", c.min_period},
          {"max_period", c.max_period}};
}

}  // namespace tendon
