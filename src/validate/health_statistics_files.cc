// The statistics of every layout as they lie in their files, unchecked; the engine's own readers
// stop at the first fault and do not say which dimension it is in.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "policy/processors.h"
#include "policy/training_configs.h"
#include "tensor/check.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Python writes NaN and Infinity into JSON, which are none.
json read_python_json(const fs::path& path) {
  try {
    return read_json(path);
  } catch (const Error&) {
    constexpr uintmax_t kBytesMax = 4 << 20;
    if (!fs::is_regular_file(path) || fs::file_size(path) > kBytesMax) throw;
    std::ifstream file(path, std::ios::binary);
    std::string text(std::istreambuf_iterator<char>(file), {});
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"})
      for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at))
        text.replace(at, word.size(), "null");
    return parse_json(text, path.string());
  }
}

// The lists of numbers in `stats[vector]`; what is no number becomes NaN.
std::map<std::string, std::vector<double>> rows_of(const json& stats, const std::string& vector) {
  std::map<std::string, std::vector<double>> rows;
  const json object = stats.value(vector, json::object());
  for (const auto& [name, row] : object.items())
    if (row.is_array())
      for (const json& v : row) rows[name].push_back(v.is_number() ? v.get<double>() : kNan);
  return rows;
}

StatisticsOfModel check_norm_stats(const fs::path& path, const Examined& m) {
  StatisticsOfModel s;
  Report r;
  const std::string file = path.string();
  r.attempt("statistics.unreadable", file, [&] {
    const json root = read_python_json(path);
    ensure(root.is_object() && root.contains("norm_stats"), Fault::checkpoint,
           "{}: 'norm_stats' is missing; is it openpi's norm_stats.json?", file);
    const json& stats = root.at("norm_stats");
    for (const std::string vector : {"state", "actions"}) {
      const bool state = vector == "state";
      StoredStatistics one{.vector = vector, .file = file, .rows = rows_of(stats, vector)};
      one.method = m.pi05() ? NormMethod::quantiles : NormMethod::mean_std;
      if (m.sizes) one.dim_max = state ? m.sizes->state_dim : m.sizes->action_dim;
      if (m.opened) one.dim_min = state ? m.opened->spec.state_dim : m.opened->spec.action_dim;
      r.append(judge(one));
      if (state) s.state = std::move(one);
    }
  });
  s.findings = std::move(r.findings);
  return s;
}

// The files that --statistics, --asset or the training config mean; else all that are there.
std::vector<fs::path> norm_stats_files(const Examined& m) {
  if (!m.options.statistics.empty()) return {m.options.statistics};
  const fs::path assets = m.folder / "assets";
  const std::vector<std::string> known = training_config_names();
  const bool trained = std::ranges::find(known, m.options.config) != known.end();
  std::string wanted = m.options.asset;
  if (wanted.empty() && m.opened)
    wanted = m.opened->spec.normalize().asset.value_or("");
  else if (wanted.empty() && trained)
    wanted = training_config(m.options.config).at("robot").at("transforms").back().at("asset");
  const fs::path one = assets / wanted / "norm_stats.json";
  if (fs::exists(one)) return {one};
  std::vector<fs::path> all;
  if (fs::is_directory(assets))
    for (const auto& entry : fs::recursive_directory_iterator(assets))
      if (entry.path().filename() == "norm_stats.json") all.push_back(entry.path());
  std::ranges::sort(all);
  return all;
}

// A processor step of lerobot, by its registry name.
json find_step(const fs::path& file, const std::string& name) {
  const json root = read_json(file);
  ensure(root.is_object() && root.contains("steps") && root.at("steps").is_array(),
         Fault::checkpoint, "{}: 'steps' is missing or no list", file.string());
  for (const json& step : root.at("steps"))
    if (step.is_object() && step.value("registry_name", "") == name) return step;
  fail(Fault::checkpoint, "{}: there is no step {}", file.string(), name);
}

void read_rows(const fs::path& path, StoredStatistics& s) {
  s.file = path.string();
  const auto file = SafetensorsFile::open(path);
  for (const HostTensor& t : file->tensors()) {
    if (!t.name.starts_with(s.vector + ".")) continue;
    const std::string statistic = t.name.substr(s.vector.size() + 1);
    if (statistic == "count" || t.shape.rank() != 1) continue;
    std::vector<double>& values = s.rows[statistic];
    for (int64_t i = 0; i < t.shape.count(); ++i)
      values.push_back(static_cast<float>(number(t, i)));
  }
}

// The method that the step names must be the one that the model was trained with.
NormMethod read_method(const json& step, const std::string& kind, const std::string& file,
                       const Examined& m, Report& r) {
  const json map = step.value("config", json::object()).value("norm_map", json::object());
  const NormMethod method = norm_method(json_string(map, kind, file + ": norm_map"), file);
  const json mapping = m.config.value("normalization_mapping", json::object());
  const std::string trained = mapping.value(kind, std::string(name(method)));
  const NormMethod usual = m.pi05() ? NormMethod::quantiles : NormMethod::mean_std;
  if (trained != name(method))
    r.error("statistics.method", kind,
            fmt::format("{} normalises {} by {}, but normalization_mapping in {} says {}; one of "
                        "the files belongs to another model",
                        file, kind, name(method), m.config_file, trained));
  else if (method != usual)
    r.add(Finding::Level::note, "statistics.method", kind,
          fmt::format("{} normalises {} by {}; {} is usual for {}", file, kind, name(method),
                      name(usual), m.pi05() ? "pi0.5" : "pi0"));
  return method;
}

StatisticsOfModel check_lerobot(const Examined& m, bool of_state) {
  const fs::path file =
      m.folder / (of_state ? "policy_preprocessor.json" : "policy_postprocessor.json");
  const std::string type = of_state ? "STATE" : "ACTION";
  StoredStatistics s{.vector = of_state ? "observation.state" : "action", .file = file.string()};
  StatisticsOfModel result;
  if (!is_file(file)) return result;  // the engine says so
  Report r;
  r.attempt("statistics.unreadable", file.filename().string(), [&] {
    const json step = find_step(file, of_state ? "normalizer_processor" : "unnormalizer_processor");
    for (const Feature& f : features(m.config, of_state ? "input_features" : "output_features"))
      if (f.type == type && f.name == s.vector) s.dim_min = s.dim_max = f.size;
    s.method = read_method(step, type, file.string(), m, r);
    if (s.method == NormMethod::identity) return;
    const std::string rows = json_string(step, "state_file", file.string());
    r.attempt("statistics.unreadable", rows, [&] {
      read_rows(m.folder / fs::path(rows).filename(), s);
      r.append(judge(s));
      result.state = s;
    });
  });
  result.findings = std::move(r.findings);
  return result;
}

StoredStatistics of_converted(const Normalizer& n, const std::string& vector, int64_t dim,
                              const std::string& file) {
  const auto [low, high] = statistic_names(n.method);
  StoredStatistics s{.vector = vector, .file = file, .method = n.method, .dim_min = dim};
  s.rows = {{low, n.centre}, {high, n.range}};
  return s;
}

}  // namespace

StatisticsOfModel check_statistics(const Examined& m) {
  StatisticsOfModel s;
  if (m.options.statistics == "none") return s;
  Report r;
  if (m.opened && (m.layout == "converted" || m.opened->spec.normalize().given)) {
    const PolicySpec& around = m.opened->spec;
    s.state = of_converted(around.normalize().state, "state", around.state_dim, m.model);
    r.append(judge(*s.state));
    r.append(judge(of_converted(around.normalize().action, "actions", around.action_dim, m.model)));
  } else if (m.layout == "lerobot" && m.options.statistics.empty()) {
    s = check_lerobot(m, true);
    r.append(std::move(s.findings));
    r.append(check_lerobot(m, false).findings);
  } else if (!m.folder.empty()) {
    const std::vector<fs::path> files = norm_stats_files(m);
    if (files.empty())
      r.error("statistics.missing", "norm_stats.json",
              fmt::format("{} has no assets/<id>/norm_stats.json; copy openpi's assets folder "
                          "beside the weights, or give --statistics FILE",
                          m.model));
    for (const fs::path& file : files) {
      s = check_norm_stats(file, m);
      r.append(std::move(s.findings));
    }
  }
  s.findings = std::move(r.findings);
  return s;
}

}  // namespace tendon
