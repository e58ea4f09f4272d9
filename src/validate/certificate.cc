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

// As a certificate names them, in its order; the first `kBinding` make it void where they differ.
constexpr std::pair<const char*, std::string ModelIdentity::*> kIdentity[] = {
    {"weights", &ModelIdentity::weights},     {"statistics", &ModelIdentity::statistics},
    {"tokenizer", &ModelIdentity::tokenizer}, {"backend", &ModelIdentity::backend},
    {"precision", &ModelIdentity::precision}, {"method", &ModelIdentity::method},
    {"processor", &ModelIdentity::processor}, {"version", &ModelIdentity::version}};
constexpr size_t kBinding = 5;

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

// Rows and columns that leave the picture come back on the other side.
void shift(Image& image, double down, double right) {
  const int rows = static_cast<int>(down * image.height);
  const int columns = static_cast<int>(right * image.width), row_bytes = 3 * image.width;
  const auto begin = image.rgb.owned().begin(), end = image.rgb.owned().end();
  std::rotate(begin, begin + rows * row_bytes, end);
  for (auto row = begin; row != end; row += row_bytes)
    std::rotate(row, row + 3 * columns, row + row_bytes);
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

DimensionCheck check_dimension(const Certificate& c, const Compared& other, size_t d,
                               double scale) {
  DimensionCheck check{.name = c.action_names[d],
                       .normal_rms_max = action_bounds(c.identity.precision).relative_l2};
  std::vector<float> got, expected;
  double squares = 0;
  for (size_t o = 0; o < c.chunks.size(); ++o)
    for (size_t i = d; i < c.chunks[o].size(); i += static_cast<size_t>(c.dim)) {
      got.push_back(static_cast<float>(c.chunks[o][i]));
      expected.push_back(static_cast<float>(other.chunks[o][i]));
      squares += std::pow(c.chunks[o][i] - other.chunks[o][i], 2);
    }
  check.apart = compare(got, expected);
  // A dimension that the statistics make constant has no scale.
  check.normal_rms =
      squares == 0 ? 0 : std::sqrt(squares / static_cast<double>(got.size())) / scale;
  return check;
}

// What all implementations are asked.
struct Questions {
  std::vector<Observation> seen;
  std::vector<std::vector<float>> noise;  // [rows, model_dim]
  int64_t model_dim = 0;
  std::vector<double> scales;  // action_scales()
  Stages stages;               // the backend's, of the first observation
};

Questions questions(const std::string& model, Engine& tested, const Certifying& o, Certificate& c) {
  Questions q{.model_dim = tested.model_dim()};
  if (o.observe) {
    q.seen = o.observe(tested);
    c.observations = fmt::format("{} recorded observations", q.seen.size());
  } else {
    for (int64_t i = 0; i < o.count; ++i)
      q.seen.push_back(drawn_observation(model, tested, o.seed + static_cast<uint64_t>(i)));
    c.observations =
        fmt::format("{} observations drawn within the statistics, seed {}", q.seen.size(), o.seed);
  }
  const auto values = static_cast<size_t>(tested.horizon() * q.model_dim);
  for (size_t i = 0; i < q.seen.size(); ++i)
    normal_noise(o.seed + i, 0, q.noise.emplace_back(values));
  q.scales = action_scales(OpenedEngine::of(tested).policy->spec(), q.seen[0].state);
  return q;
}

// The backend's own part of the certificate.
Questions run_tested(const OpenedModel& opened, const OpenOptions& options, const Certifying& o,
                     Certificate& c) {
  Engine tested = OpenedEngine::front(open_engine(opened, options));
  c.identity.method = tested.method();
  c.identity.precision = OpenedEngine::of(tested).options.precision;
  c.action_names = tested.action_names();
  Questions q = questions(c.model, tested, o, c);
  for (size_t i = 0; i < q.seen.size(); ++i) {
    const Actions got = tested.infer(q.seen[i], {.noise = q.noise[i]});
    c.rows = got.horizon;
    c.dim = got.dim;
    c.chunks.push_back(got.values);
  }
  q.stages = run_stages(OpenedEngine::of(tested), q.seen[0], {.noise = q.noise[0]}).stages;
  return q;
}

ModuleCheck check_stage(const Questions& q, const std::string& precision,
                        const std::string& against,
                        const std::pair<std::string, std::vector<float>>& expected) {
  const auto got = std::ranges::find(q.stages, expected.first, &Stages::value_type::first);
  ensure(got != q.stages.end(), Fault::input,
         "{} gave a stage '{}'; stages are siglip, prefix, keys, values, velocity and actions",
         against, expected.first);
  ensure(got->second.size() == expected.second.size(), Fault::input,
         "{} gave {} numbers for the stage '{}', expected {}", against, expected.second.size(),
         expected.first, got->second.size());
  return judge_stage(expected.first, precision, got->second, expected.second);
}

Compared compare_with(const std::string& against, const Certificate& c, const Questions& q,
                      const std::function<Answered(size_t)>& answer) {
  Compared other{.against = against};
  for (size_t i = 0; i < q.seen.size(); ++i) {
    Answered is = answer(i);
    ensure(is.actions.size() == c.chunks[i].size(), Fault::input,
           "{} gave {} numbers for observation {}, expected {} rows of {}", against,
           is.actions.size(), i, c.rows, c.dim);
    other.chunks.push_back(std::move(is.actions));
    if (i > 0) continue;
    for (const auto& stage : is.stages)
      other.stages.push_back(check_stage(q, c.identity.precision, against, stage));
  }
  std::ranges::sort(other.stages, std::greater(),
                    [](const ModuleCheck& s) { return s.apart.relative_l2 / s.gate.relative_l2; });
  for (size_t d = 0; d < q.scales.size(); ++d)
    other.dimensions.push_back(check_dimension(c, other, d, q.scales[d]));
  std::ranges::sort(other.dimensions, std::greater(), &DimensionCheck::normal_rms);
  return other;
}

Compared compare_with_reference(const OpenedModel& opened, const OpenOptions& options,
                                const Certificate& c, const Questions& q) {
  const auto reference = open_engine(opened, reference_options(options, c.identity.precision));
  return compare_with("the plain reference in f32", c, q, [&](size_t i) -> Answered {
    const InferOptions given{.noise = q.noise[i]};
    if (i > 0) return {reference->policy->infer(q.seen[i], given).values, {}};
    StagedActions first = run_stages(*reference, q.seen[i], given);
    return {std::move(first.actions.values), std::move(first.stages)};
  });
}

}  // namespace

ModelIdentity identify(const std::string& model, const OpenOptions& options) {
  return identify(open_model(model, resolved(options)), options);
}

ModelIdentity identify(const OpenedModel& opened, const OpenOptions& given) {
  const OpenOptions options = resolved(given);
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
    shift(image, down, next());
  }
  return drawn;
}

bool Compared::passed() const {
  return std::ranges::all_of(stages, &ModuleCheck::passed) &&
         std::ranges::all_of(dimensions, &DimensionCheck::passed);
}

bool Certificate::passed() const { return std::ranges::all_of(compared, &Compared::passed); }

Certificate certify(const std::string& model, const OpenOptions& options, const Certifying& o) {
  const OpenedModel opened = open_model(model, resolved(options));
  Certificate c{.model = model, .identity = identify(opened, options)};
  const Questions q = run_tested(opened, options, o, c);
  c.compared.push_back(compare_with_reference(opened, options, c, q));
  if (o.oracle)
    c.compared.push_back(compare_with(o.oracle_name, c, q, [&](size_t i) {
      return o.oracle(q.seen[i], q.noise[i], q.model_dim);
    }));
  return c;
}

nlohmann::ordered_json to_json(const Certificate& c) {
  const auto numbers = [](const Comparison& apart) {
    return Json{{"pcc", apart.pcc},
                {"relative_l2", apart.relative_l2},
                {"max_error", apart.max_error},
                {"scale", apart.scale}};
  };
  Json json{{"certificate", 2}, {"model", c.model}, {"passed", c.passed()}};
  for (const auto& [key, is] : kIdentity) json[key] = c.identity.*is;
  json["observations"] = c.observations;
  json["reasons"] = {
      {"stages",
       "relative L2 and PCC at most three times what was measured with random weights at full size "
       "(docs/testing.md): more is no rounding"},
      {"actions",
       "a dimension's difference, in the units in which the model's actions have a spread of about "
       "1, at most the relative L2 that whole chunks may have"}};
  for (const Compared& other : c.compared) {
    Json one{{"against", other.against}, {"passed", other.passed()}, {"stages", Json::array()}};
    for (const ModuleCheck& s : other.stages) {
      Json stage{{"stage", s.module}};
      stage.update(numbers(s.apart));
      stage["relative_l2_max"] = s.gate.relative_l2;
      stage["passed"] = s.passed();
      one["stages"].push_back(std::move(stage));
    }
    for (const DimensionCheck& d : other.dimensions) {
      Json action{{"action", d.name}};
      action.update(numbers(d.apart));
      action["normal_rms"] = d.normal_rms;
      action["normal_rms_max"] = d.normal_rms_max;
      action["passed"] = d.passed();
      one["actions"].push_back(std::move(action));
    }
    json["compared"].push_back(std::move(one));
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
  const std::span fields(kIdentity);
  for (const auto& [key, is] : fields.first(kBinding))
    ensure(text(key) == now.*is, Fault::verdict,
           "the certificate is for '{}' with the {} {}, this model has {}: certify it again with "
           "tendon certify",
           text("model"), key, text(key), now.*is);
  const bool passed = json.contains("passed") && json["passed"] == true;
  ensure(passed, Fault::verdict, "the certificate's verdict on '{}' is negative", text("model"));
  std::vector<std::string> differences;
  for (const auto& [key, is] : fields.subspan(kBinding))
    if (text(key) != now.*is)
      differences.push_back(
          fmt::format("certified with the {} '{}', here it is '{}'", key, text(key), now.*is));
  return differences;
}

}  // namespace tendon
