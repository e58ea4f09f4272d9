#include "model/config_file.h"

#include <charconv>
#include <cmath>
#include <functional>
#include <set>

#include "checkpoint/json.h"
#include "model/parameters.h"
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

Shape need(const WeightSource& source, const std::string& name, int rank) {
  const std::optional<Shape> shape = source.shape_of(name);
  ensure(shape.has_value(), Fault::checkpoint, "{} has no tensor {}; is it a pi0 or pi0.5 model?",
         source.description(), name);
  ensure(shape->rank() == rank, Fault::checkpoint, "{}: {} is {}, expected {} dimensions",
         source.description(), name, to_string(*shape), rank);
  return *shape;
}

// Of "base12.rest" 12; 0 where no number follows.
int64_t number_after(const std::string& base, const std::string& name) {
  int64_t number = 0;
  const auto end = std::from_chars(name.data() + base.size(), name.data() + name.size(), number);
  return end.ec == std::errc::result_out_of_range ? INT64_MAX : number;
}

int64_t count_layers(const WeightSource& source, const std::string& base,
                     const std::string& tensor) {
  int64_t n = 0;
  while (source.has(fmt::format("{}{}.{}", base, n, tensor))) ++n;
  ensure(n > 0, Fault::checkpoint, "{} has no tensor {}0.{}", source.description(), base, tensor);
  // A shorter model would fit what is left of one whose name is damaged.
  for (const HostTensor& t : source.tensors())
    ensure(!t.name.starts_with(base) || number_after(base, t.name) < n, Fault::checkpoint,
           "{} has {}, but no tensor {}{}.{}", source.description(), t.name, base, n, tensor);
  return n;
}

// One key/value head: its width is the head size. Several cannot be told from the shapes.
GemmaConfig gemma_from(const WeightSource& source, const std::string& base) {
  GemmaConfig c;
  const Shape gate = need(source, base + "layers.0.mlp.gate_proj.weight", 2);
  c.mlp = gate[0];
  c.width = gate[1];
  c.kv_heads = 1;
  c.head_dim = need(source, base + "layers.0.self_attn.k_proj.weight", 2)[0];
  c.heads = need(source, base + "layers.0.self_attn.q_proj.weight", 2)[0] / c.head_dim;
  c.depth = count_layers(source, base + "layers.", "self_attn.q_proj.weight");
  return c;
}

VisionConfig vision_from(const WeightSource& source, bool heads_known) {
  VisionConfig v;
  const Shape patch = need(source, kVision + "embeddings.patch_embedding.weight", 4);
  const Shape position = need(source, kVision + "embeddings.position_embedding.weight", 2);
  v.width = patch[0];
  v.patch = patch[2];
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(position[0]))));
  ensure(side * side == position[0], Fault::checkpoint,
         "{}: {} image positions do not form a square", source.description(), position[0]);
  v.image = side * v.patch;
  v.mlp = need(source, kVision + "encoder.layers.0.mlp.fc1.weight", 2)[0];
  v.depth = count_layers(source, kVision + "encoder.layers.", "mlp.fc1.weight");
  ensure(heads_known || v.width % 72 == 0, Fault::checkpoint,
         "{}: a vision width of {} does not fall into heads of 72; say {{\"vision\": {{\"heads\": "
         "N}}}} "
         "in tendon.json beside the checkpoint or in --config FILE",
         source.description(), v.width);
  v.heads = v.width % 72 == 0 ? v.width / 72 : 1;
  return v;
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

PolicyType policy_from_weights(const WeightSource& source) {
  const bool pi0 = source.has("state_proj.weight") && source.has("action_time_mlp_in.weight");
  const bool pi05 = source.has("time_mlp_in.weight") &&
                    source.has(kExpert + "layers.0.input_layernorm.dense.weight");
  ensure(
      pi0 != pi05, Fault::checkpoint,
      "{} is neither pi0 (state_proj, action_time_mlp_in) nor pi0.5 (time_mlp_in, adaptive norms)"
      "{}",
      source.description(), pi0 ? " alone: it has the tensors of both" : "");
  return pi05 ? PolicyType::pi05 : PolicyType::pi0;
}

Config config_from_weights(const WeightSource& source, bool heads_known) {
  Config c = full_size(policy_from_weights(source));
  c.vision = vision_from(source, heads_known);
  c.vlm = gemma_from(source, kLanguage);
  c.expert = gemma_from(source, kExpert);
  c.vocab = need(source, kLanguage + "embed_tokens.weight", 2)[0];
  c.action_dim = need(source, "action_in_proj.weight", 2)[1];
  c.state_dim = c.pi05() ? c.action_dim : need(source, "state_proj.weight", 2)[1];
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
