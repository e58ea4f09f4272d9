#include "validate/health.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/values.h"
#include "model/weights.h"
#include "policy/checkpoint_folder.h"
#include "tensor/check.h"
#include "tensor/stop_watch.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// A healthy weight matrix has its largest value within a few dozen of its root mean square, a bias
// or a norm may have a few strong channels. A flipped exponent bit gives 2^16 and more.
constexpr double kMatrixOutlier = 100, kVectorOutlier = 1000;

// "[3, 17]" of the first value from `block` on that is wanted.
template <class Wanted>
std::string position(const HostTensor& t, int64_t block, Wanted wanted) {
  int64_t at = find_value(t, block, wanted);
  std::vector<int64_t> index(static_cast<size_t>(t.shape.rank()));
  for (size_t d = index.size(); d-- > 0;) {
    index[d] = at % t.shape[static_cast<int>(d)];
    at /= t.shape[static_cast<int>(d)];
  }
  return to_string(Shape(index));
}

void judge_outlier(const HostTensor& t, const Magnitudes& v, const std::string& name, Report& r) {
  // The root mean square of all but the largest, which would hide itself in a small tensor.
  const auto others = static_cast<double>(t.shape.count() - 1);
  const double square = static_cast<double>(v.largest) * static_cast<double>(v.largest);
  const double rms = std::sqrt(std::max(v.squares - square, 0.0) / std::max(others, 1.0));
  const double limit = t.shape.rank() >= 2 ? kMatrixOutlier : kVectorOutlier;
  const bool damaged = v.largest > kWeightMagnitudeMax;
  if (others < 1 || static_cast<double>(v.largest) <= limit * rms || v.largest == 0) return;
  const auto is_largest = [&](float f) { return std::abs(f) == v.largest; };
  r.add(damaged ? Finding::Level::error : Finding::Level::warning, "tensor.outlier", name,
        "{} {}: the value at {} has magnitude {:.4g}, but the root mean square of the others is "
        "{:.4g}, expected at most {} times that; a flipped bit? compare the file's checksum with "
        "the source's",
        name, to_string(t.shape), position(t, v.largest_block, is_largest), v.largest, rms, limit);
}

void judge_values(const HostTensor& t, const Magnitudes& v, Report& r) {
  const std::string name = canonical_name(t.name);
  const auto bad = [&](const char* check, const char* what, int64_t count, auto wanted) {
    if (count > 0)
      r.error(check, name,
              "{} {} holds {} of {} values {}, the first at {}; the file is damaged or training "
              "diverged: copy it again or take an earlier checkpoint",
              name, to_string(t.shape), count, t.shape.count(), what,
              position(t, v.bad_block, wanted));
  };
  bad("tensor.nan", "that are NaN", v.nans, [](float f) { return std::isnan(f); });
  bad("tensor.inf", "that are infinite", v.infinities, [](float f) { return std::isinf(f); });
  // Packed weights have padding and an order of their own.
  if (!v.finite() || name.starts_with("packed.")) return;
  if (v.largest == 0.f && t.shape.rank() >= 2) {
    // Adaptive norms begin as zeros, so an untrained pi0.5 has such matrices; so does B of a LoRA,
    // which stays so where no loss depends on it.
    const bool begins_so = name.ends_with(".dense.weight") ||
                           name.find(".lora_B") != std::string::npos || name.ends_with(".lora_b");
    r.add(begins_so ? Finding::Level::warning : Finding::Level::error, "tensor.zero", name,
          "{} {} holds only zeros; was it never trained or never copied?", name,
          to_string(t.shape));
  }
  judge_outlier(t, v, name, r);
}

// Each number of every float tensor, read once.
void check_values(const Examined& m, Report& r) {
  std::vector<HostTensor> tensors;
  for (const auto& file : m.files)
    for (const HostTensor& t : file->tensors())
      if (t.dtype == DType::f32 || t.dtype == DType::bf16 || t.dtype == DType::f16)
        tensors.push_back(t);
  const std::vector<Magnitudes> all = measure(tensors, m.options.threads, Scan::whole);
  r.tensors = std::ssize(tensors);
  for (size_t t = 0; t < tensors.size(); ++t) {
    judge_values(tensors[t], all[t], r);
    r.values += tensors[t].shape.count();
  }
}

// Every parameter present, in its shape and in a type that can be read. One missing or wrong tensor
// does not change what is expected of the others: most tensors decide.
void check_names(const WeightSource& source, Examined& m, Report& r) {
  const auto on_problem = [&](const Problem& p) { r.error(p.check, p.subject, "{}", p.text); };
  const json stated = m.config.value("max_state_dim", json());
  r.attempt("tensor.tower", source.description(), [&] {
    Config sizes = config_from_weights(source, /*heads_known=*/true, on_problem);
    // The state is as wide as the actions, unless two sources deny it.
    if (!stated.is_number_integer() || stated != sizes.state_dim)
      sizes.state_dim = sizes.action_dim;
    for (const std::string& name : check_parameters(source, sizes, on_problem)) {
      if (std::ranges::find(r.findings, name, &Finding::subject) != r.findings.end()) continue;
      r.add(alters_a_module(name, sizes) ? Finding::Level::error : Finding::Level::warning,
            "tensor.unused", name,
            "{}: {} belongs to no parameter of {} and is not read; does it come from another model "
            "or a newer release?",
            source.description(), name, tendon::name(sizes.policy));
    }
    m.sizes = sizes;
  });
}

// A checkpoint folder as far as its files can be read, one by one.
void examine_folder(Examined& m, Report& r) {
  m.config_file = (m.folder / "config.json").string();
  if (is_file(m.config_file))
    r.attempt("config.unreadable", "config.json", [&] {
      json config = read_json(m.config_file);
      ensure(config.is_object(), Fault::checkpoint, "{}: expected an object, got {}", m.config_file,
             config.type_name());
      m.config = std::move(config);
    });
  const bool lerobot = m.config.contains("type") || is_file(m.folder / "policy_preprocessor.json");
  m.layout = lerobot ? "lerobot" : "openpi";
  WeightFiles files;
  const fs::path index = m.folder / "model.safetensors.index.json";
  const bool indexed = fs::exists(index);
  r.attempt(indexed ? "file.index" : "file.missing",
            indexed ? index.string() : (m.folder / "model.safetensors").string(),
            [&] { files = weight_files(m.folder, m.options, m.config); });
  std::vector<fs::path> paths = files.weights;
  if (!files.adapter.empty()) paths.push_back(files.adapter);
  for (const fs::path& path : paths)
    r.attempt("file.damaged", path.string(),
              [&] { m.files.push_back(SafetensorsFile::open(path)); });
  if (m.files.empty() || m.files.size() < paths.size()) return;  // half the names tell little
  std::unique_ptr<WeightSource> weights;
  r.attempt("tensor.names", m.folder.string(), [&] { weights = open_weights(files, m.options); });
  if (weights) check_names(*weights, m, r);
}

Examined examine(const std::string& model, const OpenOptions& options, Report& r) {
  Examined m{.model = model, .options = options};
  if (is_demo(model) || fs::is_directory(model)) {
    m.folder = is_demo(model) ? demo_folder(model) : model;
    if (!fs::is_directory(m.folder / "params")) examine_folder(m, r);
  } else if (fs::is_regular_file(model)) {
    m.layout = "converted";
    r.attempt("file.damaged", model, [&] { m.files.push_back(SafetensorsFile::open(model)); });
  }
  return m;
}

// What the engine itself says, which stops at the first fault.
Report open_as_the_engine(Examined& m) {
  Report refusal;
  refusal.attempt("open.refused", m.model, [&] { m.opened = open_model(m.model, m.options); });
  if (m.opened)
    for (const std::string& warning : m.opened->warnings)
      refusal.add(Finding::Level::warning, "open.warning", m.model, "{}", warning);
  if (const AdapterSummary* a = m.opened ? m.opened->weights->adapter() : nullptr)
    refusal.add(Finding::Level::note, "open.adapter", m.model, "{}", a->text());
  if (m.opened && m.folder.empty()) m.layout = m.opened->layout;
  if (m.opened && !m.sizes) m.sizes = m.opened->config;
  return refusal;
}

// A refusal is only noted where a fault that was found may be its reason.
void append_refusal(const Report& refusal, Report& r) {
  const bool explained = !r.sound();
  for (Finding f : refusal.findings) {
    if (explained && f.level == Finding::Level::error) f.level = Finding::Level::note;
    if (std::ranges::find(r.findings, f.text, &Finding::text) == r.findings.end())
      r.findings.push_back(std::move(f));
  }
}

}  // namespace

std::string_view name(Finding::Level level) {
  return std::array{"note", "warning", "ERROR"}.at(static_cast<size_t>(level));
}

json to_json(const Health& health) {
  json findings = json::array();
  for (const Finding& f : health.findings)
    findings.push_back(
        {{"level", name(f.level)}, {"check", f.check}, {"subject", f.subject}, {"text", f.text}});
  return {{"sound", health.sound()}, {"tensors", health.tensors}, {"findings", findings}};
}

bool Health::sound() const {
  return std::ranges::find(findings, Finding::Level::error, &Finding::level) == findings.end();
}

Health check_health(const std::string& model, const OpenOptions& options,
                    const std::vector<std::string>& observations) {
  StopWatch watch;
  Report r;
  Examined m = examine(model, options, r);
  check_values(m, r);
  const Report refusal = open_as_the_engine(m);
  if (!m.layout.empty()) {
    check_configuration(m, r);
    check_robot(m, observations, r);
  }
  append_refusal(refusal, r);
  r.seconds = watch.lap_ms() / 1e3;
  return r;
}

}  // namespace tendon
