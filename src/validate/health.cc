#include "validate/health.h"

#include <algorithm>
#include <chrono>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "policy/checkpoint_folder.h"
#include "tensor/check.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

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
  if (!weights) return;
  const json stated = m.config.value("max_state_dim", json());
  Names names = check_names(*weights, stated.is_number_integer() ? stated.get<int64_t>() : 0);
  m.sizes = names.sizes;
  r.append(std::move(names.findings));
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
std::vector<Finding> open_as_the_engine(Examined& m) {
  Report refusal;
  refusal.attempt("open.refused", m.model, [&] { m.opened = open_model(m.model, m.options); });
  if (m.opened)
    for (const std::string& warning : m.opened->warnings)
      refusal.add(Finding::Level::warning, "open.warning", m.model, warning);
  if (const AdapterSummary* a = m.opened ? m.opened->weights->adapter() : nullptr)
    refusal.add(Finding::Level::note, "open.adapter", m.model, a->text());
  if (m.opened && m.folder.empty()) m.layout = m.opened->layout;
  if (m.opened && !m.sizes) m.sizes = m.opened->config;
  return std::move(refusal.findings);
}

// A refusal is only noted where a fault that was found may be its reason.
void append_refusal(std::vector<Finding> refusal, Report& r) {
  const auto is_error = [](const Finding& f) { return f.level == Finding::Level::error; };
  const bool explained = std::ranges::any_of(r.findings, is_error);
  for (Finding& f : refusal) {
    const auto same = [&](const Finding& g) { return g.text == f.text; };
    if (explained && is_error(f)) f.level = Finding::Level::note;
    if (std::ranges::none_of(r.findings, same)) r.findings.push_back(std::move(f));
  }
}

}  // namespace

bool Health::sound() const {
  return std::ranges::none_of(findings,
                              [](const Finding& f) { return f.level == Finding::Level::error; });
}

Health check_health(const std::string& model, const OpenOptions& options,
                    const std::vector<std::string>& observations) {
  const auto begin = std::chrono::steady_clock::now();
  Report r;
  Examined m = examine(model, options, r);
  Health h = check_values(m.files, options.threads);
  r.append(std::move(h.findings));
  std::vector<Finding> refusal = open_as_the_engine(m);
  if (!m.layout.empty()) {
    r.append(check_configuration(m));
    StatisticsOfModel statistics = check_statistics(m);
    r.append(std::move(statistics.findings));
    r.append(check_tokenizer(m));
    for (const std::string& file : observations)
      r.append(check_observation(file, m, statistics.state));
  }
  append_refusal(std::move(refusal), r);
  h.findings = std::move(r.findings);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  h.seconds = took.count();
  return h;
}

}  // namespace tendon
