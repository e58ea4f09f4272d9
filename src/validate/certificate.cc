#include "validate/certificate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoint/content_hash.h"
#include "checkpoint/files.h"
#include "policy/open_model.h"
#include "policy/policy_spec_json.h"
#include "tendon/backends.h"
#include "tendon/embedded.h"
#include "tensor/check.h"
#include "tensor/random.h"

namespace tendon {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kTokenizerBytesMax = 64 << 20;

std::string hash_of(const std::string& text) {
  return fmt::format("{:016x}", content_hash(std::as_bytes(std::span(text))));
}

std::string hash_weights(const OpenedModel& model, const OpenOptions& options) {
  std::vector<HostTensor> tensors;
  for (const auto& [name, tensor] : model.weights->tensors()) tensors.push_back(tensor);
  if (!tensors.empty()) return content_hash(tensors, {}, options.threads, kTokenTable);
  return hash_of(fmt::format("{}, seed {}", model.weights->description(), options.weights_seed));
}

// A converted file carries its tokenizer among its tensors.
std::string hash_tokenizer(const OpenedModel& model, const std::string& weights) {
  if (model.layout == "converted") return weights;
  return hash_of(is_file(model.tokenizer) ? read_file(model.tokenizer, kTokenizerBytesMax)
                                          : model.tokenizer);
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

// Uniform in [0, 1), the same on every machine.
double uniform(uint64_t seed, uint32_t at) {
  return philox({{at, 0, 0x63657274, 0}}, seed).word[0] / 4294967296.0;
}

// Between which the training's values of a dimension lie, before they are normalised.
std::pair<double, double> training_range(const Normalizer& n, size_t d) {
  if (n.has_quantiles(static_cast<int64_t>(d) + 1)) return {n.q01[d], n.q99[d]};
  if (n.method == NormMethod::identity) return {-1, 1};
  if (n.method == NormMethod::mean_std)
    return {n.centre[d] - 2 * n.range[d], n.centre[d] + 2 * n.range[d]};
  return {n.centre[d], n.range[d]};
}

Image shifted(const Image& image, double down, double right) {
  Image out = image;
  const int rows = static_cast<int>(down * image.height);
  const int columns = static_cast<int>(right * image.width);
  std::vector<uint8_t>& to = out.rgb.owned();
  const auto at = [&](int row, int column, int channel) {
    return static_cast<size_t>(image.planar ? (channel * image.height + row) * image.width + column
                                            : 3 * (row * image.width + column) + channel);
  };
  for (int row = 0; row < image.height; ++row)
    for (int column = 0; column < image.width; ++column)
      for (int channel = 0; channel < 3; ++channel)
        to[at(row, column, channel)] =
            image.rgb[at((row + rows) % image.height, (column + columns) % image.width, channel)];
  return out;
}

// By how much each of the robot's actions changes with the model's, which have a spread of about 1.
std::vector<double> action_scales(const PolicySpec& spec, const std::vector<double>& state) {
  const States states = state_to_model(spec.transforms, state);
  const auto dim = static_cast<size_t>(spec.action_dim);
  std::vector<double> zero(dim, 0.0), one(dim, 1.0);
  actions_to_robot(spec.transforms, states, zero);
  actions_to_robot(spec.transforms, states, one);
  for (size_t d = 0; d < dim; ++d) one[d] = std::abs(one[d] - zero[d]);
  return one;
}

DimensionCheck check_dimension(const Certificate& c, size_t d, double scale, double rms_max) {
  DimensionCheck check{.name = c.action_names[d], .normal_rms_max = rms_max};
  std::vector<float> got, expected;
  double squares = 0;
  for (const ChunkPair& chunk : c.chunks)
    for (size_t i = d; i < chunk.got.size(); i += static_cast<size_t>(c.dim)) {
      got.push_back(static_cast<float>(chunk.got[i]));
      expected.push_back(static_cast<float>(chunk.expected[i]));
      squares += std::pow(chunk.got[i] - chunk.expected[i], 2);
    }
  check.apart = compare(got, expected);
  // A dimension that the statistics make constant has no scale.
  check.normal_rms =
      squares == 0 ? 0 : std::sqrt(squares / static_cast<double>(got.size())) / scale;
  return check;
}

std::vector<float> noise_of(const Engine& engine, uint64_t seed) {
  std::vector<float> noise(static_cast<size_t>(engine.horizon() * engine.model_dim()));
  normal_noise(seed, 0, noise);
  return noise;
}

}  // namespace

ModelIdentity identify(const std::string& model, const OpenOptions& given) {
  const OpenOptions options = resolved(given);
  const OpenedModel opened = open_model(model, options);
  ModelIdentity id{.weights = hash_weights(opened, options), .version = version()};
  id.statistics = hash_of(policy_spec_json(opened.spec).dump());
  id.tokenizer = hash_tokenizer(opened, id.weights);
  id.backend = options.backend;
  id.precision = opened.precision.empty() ? options.precision : opened.precision;
  id.processor = processor_name();
  return id;
}

Observation drawn_observation(const std::string& model, Engine& engine, uint64_t seed) {
  Observation drawn = *observation_for(model, engine, true);
  uint32_t at = 0;
  const auto next = [&] { return uniform(seed, at++); };
  const PolicySpec& spec = OpenedEngine::of(engine).policy->spec();
  std::vector<double> state(static_cast<size_t>(spec.state_dim));
  for (size_t d = 0; d < state.size(); ++d) {
    const auto [low, high] = training_range(spec.normalize().state, d);
    state[d] = low + next() * (high - low);
  }
  drawn.state = state_to_robot(spec.transforms, std::move(state));
  for (auto& [camera, image] : drawn.images) {
    const double down = next();
    image = shifted(image, down, next());
  }
  return drawn;
}

bool Certificate::passed() const {
  return std::ranges::all_of(stages, &std::string::empty, &ModuleCheck::failed) &&
         std::ranges::all_of(dimensions, &DimensionCheck::passed);
}

Certificate certify(const std::string& model, const OpenOptions& options, const Certifying& o) {
  Certificate c{.model = model, .identity = identify(model, options), .against = o.against};
  Engine tested = Engine::open(model, options);
  std::optional<Engine> reference;
  if (!o.oracle) reference = open_reference(model, options, tested);
  c.identity.method = tested.method();
  c.action_names = tested.action_names();
  std::vector<Observation> seen = o.recorded;
  c.observations = fmt::format("{} recorded observations", seen.size());
  if (seen.empty()) {
    for (int64_t i = 0; i < o.drawn; ++i)
      seen.push_back(drawn_observation(model, tested, o.seed + static_cast<uint64_t>(i)));
    c.observations =
        fmt::format("{} observations drawn within the statistics, seed {}", seen.size(), o.seed);
  }
  for (size_t i = 0; i < seen.size(); ++i) {
    const InferOptions given{.noise = noise_of(tested, o.seed + i)};
    const Actions got = tested.infer(seen[i], given);
    ChunkPair chunk{seen[i].prompt.value_or(""), got.values, {}};
    chunk.expected =
        o.oracle ? o.oracle(seen[i], given.noise) : reference->infer(seen[i], given).values;
    ensure(chunk.expected.size() == chunk.got.size(), Fault::input,
           "{} gave {} numbers for observation {}, expected {} rows of {}", o.against,
           chunk.expected.size(), i, got.horizon, got.dim);
    c.rows = got.horizon;
    c.dim = got.dim;
    c.chunks.push_back(std::move(chunk));
  }
  if (reference)
    c.stages = validate_modules(OpenedEngine::of(tested), OpenedEngine::of(*reference), seen[0],
                                {.only = "end_to_end."})
                   .checks;
  std::ranges::sort(c.stages, std::greater(),
                    [](const ModuleCheck& s) { return s.apart.relative_l2 / s.gate.relative_l2; });
  const OpenedEngine& opened = OpenedEngine::of(tested);
  const std::vector<double> scales = action_scales(opened.policy->spec(), seen[0].state);
  const double rms_max = action_bounds(opened.options.precision).relative_l2;
  for (size_t d = 0; d < scales.size(); ++d)
    c.dimensions.push_back(check_dimension(c, d, scales[d], rms_max));
  std::ranges::sort(c.dimensions, std::greater(), &DimensionCheck::normal_rms);
  return c;
}

nlohmann::ordered_json to_json(const Certificate& c) {
  const auto numbers = [](const Comparison& apart) {
    return Json{{"pcc", apart.pcc},
                {"relative_l2", apart.relative_l2},
                {"max_error", apart.max_error},
                {"scale", apart.scale}};
  };
  const ModelIdentity& id = c.identity;
  Json json{{"certificate", 1},
            {"model", c.model},
            {"passed", c.passed()},
            {"weights", id.weights},
            {"statistics", id.statistics},
            {"tokenizer", id.tokenizer},
            {"backend", id.backend},
            {"precision", id.precision},
            {"method", id.method},
            {"processor", id.processor},
            {"version", id.version},
            {"against", c.against},
            {"observations", c.observations}};
  json["reasons"] = {
      {"stages",
       "relative L2 and PCC at most three times what was measured with random weights at full size "
       "(docs/testing.md): more is no rounding"},
      {"actions",
       "a dimension's difference, in the units in which the model's actions have a spread of about "
       "1, at most the relative L2 that whole chunks may have"}};
  json["stages"] = Json::array();
  for (const ModuleCheck& s : c.stages) {
    Json stage{{"stage", s.module.substr(s.module.find('.') + 1)}};
    stage.update(numbers(s.apart));
    stage["relative_l2_max"] = s.gate.relative_l2;
    stage["passed"] = s.failed.empty();
    json["stages"].push_back(std::move(stage));
  }
  for (const DimensionCheck& d : c.dimensions) {
    Json action{{"action", d.name}};
    action.update(numbers(d.apart));
    action["normal_rms"] = d.normal_rms;
    action["normal_rms_max"] = d.normal_rms_max;
    action["passed"] = d.passed();
    json["actions"].push_back(std::move(action));
  }
  return json;
}

std::vector<std::string> check_certificate(const std::string& certificate,
                                           const ModelIdentity& now) {
  const Json json = Json::parse(certificate, nullptr, false);
  const auto text = [&](const char* key) {
    const bool there = json.is_object() && json.contains(key) && json[key].is_string();
    ensure(there, Fault::usage, "this is no certificate of tendon certify: it has no '{}'", key);
    return json[key].get<std::string>();
  };
  for (const auto& [key, is] :
       {std::pair("weights", now.weights), std::pair("statistics", now.statistics),
        std::pair("tokenizer", now.tokenizer), std::pair("backend", now.backend),
        std::pair("precision", now.precision)})
    ensure(text(key) == is, Fault::verdict,
           "the certificate is for '{}' with the {} {}, this model has {}: certify it again with "
           "tendon certify",
           text("model"), key, text(key), is);
  const bool passed = json.contains("passed") && json["passed"] == true;
  ensure(passed, Fault::verdict, "the certificate's verdict on '{}' is negative", text("model"));
  std::vector<std::string> differences;
  for (const auto& [key, is] :
       {std::pair("method", now.method), std::pair("processor", now.processor),
        std::pair("version", now.version)})
    if (text(key) != is)
      differences.push_back(
          fmt::format("certified with the {} '{}', here it is '{}'", key, text(key), is));
  return differences;
}

}  // namespace tendon
