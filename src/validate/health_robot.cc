// What lies between a robot and the network: statistics, tokenizer, recorded observations.
// Statistics of every layout are read as they lie in their files, unchecked: the engine's own
// readers stop at the first fault and do not say which dimension it is in.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "policy/policy_spec_json.h"
#include "policy/processors.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Below this the epsilons of openpi and lerobot, not the data, decide what comes out.
constexpr double kSpreadMin = 1e-5;

// The statistics of one vector as they lie in their file: every value may be wrong.
struct StoredStatistics {
  std::string vector, file;  // "observation.state" in lerobot's files, "state" in openpi's
  NormMethod method = NormMethod::identity;
  std::map<std::string, std::vector<double>> rows = {};  // by "mean", "std", "q01", ...
  int64_t dim_min = 1, dim_max = 4096;                   // values that the model can use
};

// What the statistics that are not in use say about dimension d: the smallest spread; absent: there
// are none.
std::optional<double> other_spread(const StoredStatistics& s, const std::string& in_use, size_t d) {
  const auto value = [&](const char* name) {
    const auto row = s.rows.find(name);
    return row == s.rows.end() || d >= row->second.size() ? std::nan("") : row->second[d];
  };
  std::optional<double> least;
  for (const double spread : {in_use == "std" ? std::nan("") : value("std"),
                              in_use == "q99" ? std::nan("") : value("q99") - value("q01")})
    if (std::isfinite(spread)) least = std::min(least.value_or(spread), spread);
  return least;
}

// The statistic of that name, whose length should be one that the model can use; null: absent.
const std::vector<double>* judge_row(const StoredStatistics& s, const std::string& statistic,
                                     Report& r) {
  const auto found = s.rows.find(statistic);
  std::string there;
  for (const auto& [name, values] : s.rows) there += (there.empty() ? "" : ", ") + name;
  if (found == s.rows.end()) {
    r.error("statistics.missing", s.vector + "." + statistic,
            "{}: {} has no {}, which {} normalisation needs; there is: {}. Were these statistics "
            "computed for another kind of model?",
            s.file, s.vector, statistic, name(s.method), there.empty() ? "nothing" : there);
    return nullptr;
  }
  const int64_t n = std::ssize(found->second);
  if (n < s.dim_min || n > s.dim_max)
    r.error("statistics.dimension", s.vector + "." + statistic,
            "{}: {}.{} has {} values, expected {} to {}; do the statistics belong to this robot?",
            s.file, s.vector, statistic, n, s.dim_min, s.dim_max);
  return &found->second;
}

// Whether dimension d never changed, which is no fault where all statistics say so.
bool judge_dimension(const StoredStatistics& s, size_t d, Report& r) {
  const auto subject = [&](const std::string& statistic) {
    return fmt::format("{}.{}[{}]", s.vector, statistic, d);
  };
  const auto [low_name, high_name] = statistic_names(s.method);
  const double low = s.rows.at(low_name)[d], high = s.rows.at(high_name)[d];
  for (const auto& [statistic, value] : {std::pair(low_name, low), std::pair(high_name, high)})
    if (!std::isfinite(value))
      r.error("statistics.nan", subject(statistic),
              "{}: {} is {}, expected a finite number; compute the statistics again", s.file,
              subject(statistic), value);
  if (!std::isfinite(low) || !std::isfinite(high)) return false;
  const bool deviation = s.method == NormMethod::mean_std;
  const double spread = deviation ? high : high - low;
  const std::string named = subject(high_name);
  if (spread < 0 && deviation)
    r.error("statistics.negative", named, "{}: {} is {}, a standard deviation is never negative",
            s.file, named, high);
  else if (spread < 0)
    r.error("statistics.order", named, "{}: {} is {}, below {} = {}; were the two swapped?", s.file,
            named, high, low_name, low);
  if (spread < 0 || spread >= kSpreadMin) return false;
  const std::optional<double> other = other_spread(s, high_name, d);
  if (other && std::abs(*other) < kSpreadMin) return true;
  r.add(other ? Finding::Level::error : Finding::Level::warning, "statistics.constant", named,
        "{}: {} leaves a spread of {:.3g}, by which every deviation is divided{}", s.file, named,
        spread, other ? fmt::format("; the other statistics say {:.3g}", *other) : "");
  return false;
}

void judge(const StoredStatistics& s, Report& r) {
  if (s.method == NormMethod::identity) return;
  const auto [low_name, high_name] = statistic_names(s.method);
  const std::vector<double>* low = judge_row(s, low_name, r);
  const std::vector<double>* high = judge_row(s, high_name, r);
  if (!low || !high) return;
  if (low->size() != high->size())
    r.error("statistics.dimension", s.vector + "." + high_name,
            "{}: {} has {} values of {} and {} of {}; expected as many", s.file, s.vector,
            low->size(), low_name, high->size(), high_name);
  std::vector<size_t> constant;
  for (size_t d = 0; d < std::min(low->size(), high->size()); ++d)
    if (judge_dimension(s, d, r)) constant.push_back(d);
  if (!constant.empty())
    r.add(Finding::Level::note, "statistics.constant", s.vector,
          "{}: dimension {} of {} never changed in the data set; a robot that moves it leaves what "
          "the model has seen",
          s.file, fmt::join(constant, ", "), s.vector);
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Python writes NaN and Infinity into JSON, which are none.
json read_python_json(const fs::path& path) {
  try {
    return read_json(path);
  } catch (const Error&) {
    constexpr uintmax_t kBytesMax = 4 << 20;
    if (!fs::is_regular_file(path) || fs::file_size(path) > kBytesMax) throw;
    std::string text = read_file(path, kBytesMax);
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

std::optional<StoredStatistics> check_norm_stats(const fs::path& path, const Examined& m,
                                                 Report& r) {
  std::optional<StoredStatistics> of_state;
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
      judge(one, r);
      if (state) of_state = std::move(one);
    }
  });
  return of_state;
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
            "{} normalises {} by {}, but normalization_mapping in {} says {}; one of the files "
            "belongs to another model",
            file, kind, name(method), m.config_file, trained);
  else if (method != usual)
    r.add(Finding::Level::note, "statistics.method", kind,
          "{} normalises {} by {}; {} is usual for {}", file, kind, name(method), name(usual),
          m.pi05() ? "pi0.5" : "pi0");
  return method;
}

std::optional<StoredStatistics> check_lerobot(const Examined& m, bool of_state, Report& r) {
  const fs::path file =
      m.folder / (of_state ? "policy_preprocessor.json" : "policy_postprocessor.json");
  const std::string type = of_state ? "STATE" : "ACTION";
  StoredStatistics s{.vector = of_state ? "observation.state" : "action", .file = file.string()};
  std::optional<StoredStatistics> read;
  if (!is_file(file)) return read;  // the engine says so
  r.attempt("statistics.unreadable", file.filename().string(), [&] {
    const json step = find_step(file, of_state ? "normalizer_processor" : "unnormalizer_processor");
    for (const Feature& f : features(m.config, of_state ? "input_features" : "output_features"))
      if (f.type == type && f.name == s.vector) s.dim_min = s.dim_max = f.size;
    s.method = read_method(step, type, file.string(), m, r);
    if (s.method == NormMethod::identity) return;
    const std::string rows = json_string(step, "state_file", file.string());
    r.attempt("statistics.unreadable", rows, [&] {
      read_rows(m.folder / fs::path(rows).filename(), s);
      judge(s, r);
      read = s;
    });
  });
  return read;
}

StoredStatistics of_converted(const Normalizer& n, const std::string& vector, int64_t dim,
                              const std::string& file) {
  const auto [low, high] = statistic_names(n.method);
  StoredStatistics s{.vector = vector, .file = file, .method = n.method, .dim_min = dim};
  s.rows = {{low, n.centre}, {high, n.range}};
  return s;
}

// Reads and judges the statistics of state and actions; returns the state's.
std::optional<StoredStatistics> check_statistics(const Examined& m, Report& r) {
  std::optional<StoredStatistics> state;
  if (m.options.statistics == "none") return state;
  if (m.opened && (m.layout == "converted" || m.opened->spec.normalize().given)) {
    const PolicySpec& around = m.opened->spec;
    state = of_converted(around.normalize().state, "state", around.state_dim, m.model);
    judge(*state, r);
    judge(of_converted(around.normalize().action, "actions", around.action_dim, m.model), r);
  } else if (m.layout == "lerobot" && m.options.statistics.empty()) {
    state = check_lerobot(m, true, r);
    check_lerobot(m, false, r);
  } else if (!m.folder.empty()) {
    const std::vector<fs::path> files = norm_stats_files(m);
    if (files.empty())
      r.error("statistics.missing", "norm_stats.json",
              "{} has no assets/<id>/norm_stats.json; copy openpi's assets folder beside the "
              "weights, or give --statistics FILE",
              m.model);
    for (const fs::path& file : files) state = check_norm_stats(file, m, r);
  }
  return state;
}

// ---- The tokenizer against the token table ----

// A tokenizer spells characters that it does not know in bytes, so a lost newline would show only
// as worse actions: its token is then nine after that of the byte 1.
bool newline_is_a_piece(const Tokenizer& tokenizer) {
  const std::vector<int32_t> newline = tokenizer.encode("\n"), one = tokenizer.encode("\x01");
  return newline.size() == 1 && (one.size() != 1 || newline[0] - one[0] != '\n' - '\x01');
}

void check_tokenizer(const Examined& m, Report& r) {
  const bool generated = m.layout == "synthetic";
  if (generated || (m.folder.empty() && !m.opened)) return;
  std::shared_ptr<const Tokenizer> tokenizer = m.opened ? m.opened->spec.tokenizer : nullptr;
  const std::string file = m.opened                       ? m.opened->tokenizer
                           : !m.options.tokenizer.empty() ? m.options.tokenizer
                                                          : find_tokenizer(m.folder.string());
  if (!tokenizer && file.empty())
    return r.error("tokenizer.missing", "tokenizer",
                   "{} has no tokenizer; put paligemma_tokenizer.model or tokenizer.json beside "
                   "the weights or name one with --tokenizer FILE",
                   m.model);
  r.attempt("tokenizer.unreadable", file, [&] {
    if (!tokenizer) tokenizer = std::make_shared<const Tokenizer>(Tokenizer::open(file));
  });
  if (!tokenizer) return;
  const bool folded = m.opened && m.opened->spec.folded_vocab;
  if (m.sizes && !folded && tokenizer->vocabulary() > m.sizes->vocab)
    r.error("tokenizer.vocabulary", file,
            "{}: the tokenizer knows {} tokens, but embed_tokens.weight has {} rows; it belongs to "
            "another model",
            file, tokenizer->vocabulary(), m.sizes->vocab);
  const bool bytewise = !is_file(file);  // converted from a synthetic model
  if (!bytewise && !newline_is_a_piece(*tokenizer))
    r.error("tokenizer.newline", file,
            "{}: the newline that ends every prompt is no token of its own; it is not PaliGemma's "
            "tokenizer",
            file);
}

// ---- Recorded observations against the inputs and the statistics of the model ----

// Degrees for radians are a factor of 57, millimetres for metres 1000: what a robot really does
// stays within a few deviations, or within one more width of the quantiles on either side.
constexpr double kDeviationsMax = 8, kQuantilesMax = 3;
constexpr double kEpsilon = 1e-6;  // openpi's epsilon

std::vector<double> read_state(const json& root, const std::string& file) {
  std::vector<double> state;
  const auto append = [&](const char* key) {
    ensure(root.contains(key) && root.at(key).is_array(), Fault::input,
           "{}: '{}' is missing or no list", file, key);
    for (const json& v : root.at(key)) {
      ensure(v.is_number(), Fault::input, "{}: {}[{}] is {}, expected a number", file, key,
             state.size(), v.dump().substr(0, 40));
      state.push_back(v.get<double>());
    }
  };
  if (root.contains("joint_position") && !root.contains("state")) {  // DROID
    append("joint_position");
    append("gripper_position");
  } else {
    append("state");
  }
  return state;
}

// Keys of an object, or names in a list.
std::vector<std::string> read_cameras(const json& root) {
  std::vector<std::string> names;
  const json cameras = root.value("cameras", json::object());
  for (const auto& [key, value] : cameras.items())
    names.push_back(camera_name(cameras.is_array() && value.is_string() ? value : json(key)));
  return names;
}

void judge_cameras(const std::vector<std::string>& sent, const std::string& file,
                   const PolicySpec& around, Report& r) {
  const std::vector<std::string> own = robot_cameras(around);
  for (const std::string& camera : sent)
    if (std::ranges::find(around.slots, camera) == around.slots.end() &&
        !around.cameras.contains(camera))
      r.error("observation.camera", camera,
              "{}: the model has no camera '{}'; it has {}; nearest: '{}'", file, camera,
              fmt::join(own, ", "), nearest(camera, own));
}

void judge_state(const std::vector<double>& state, const std::vector<double>& sent,
                 const std::string& file, const StoredStatistics& s, Report& r) {
  const auto [low_name, high_name] = statistic_names(s.method);
  const auto low = s.rows.find(low_name), high = s.rows.find(high_name);
  if (s.method == NormMethod::identity || low == s.rows.end() || high == s.rows.end()) return;
  const size_t dims = std::min({state.size(), low->second.size(), high->second.size()});
  for (size_t d = 0; d < dims; ++d) {
    const double a = low->second[d], b = high->second[d];
    const bool deviations = s.method == NormMethod::mean_std;
    const double spread = std::max(deviations ? b : b - a, kEpsilon);
    const double normalized =
        deviations ? (state[d] - a) / spread : 2 * (state[d] - a) / spread - 1;
    const double limit = deviations ? kDeviationsMax : kQuantilesMax;
    if (!(std::abs(normalized) > limit)) continue;
    r.add(Finding::Level::warning, "observation.range", fmt::format("state[{}]", d),
          "{}: state[{}] is {:.6g} and becomes {:.3g}, expected within {}; {} and {} of {} are "
          "{:.6g} and {:.6g}: are units and order those of the training data?",
          file, d, sent[d], normalized, limit, low_name, high_name, s.file, a, b);
  }
}

void check_observation(const std::string& file, const Examined& m,
                       const std::optional<StoredStatistics>& statistics, Report& r) {
  r.attempt("observation.unreadable", file, [&] {
    const json root = read_json(file);
    ensure(root.is_object(), Fault::input, "{}: expected an object, got {}", file,
           root.type_name());
    const std::vector<double> sent = read_state(root, file);
    std::vector<double> state = sent;
    bool fits = true;
    if (m.opened) {
      const PolicySpec& around = m.opened->spec;
      fits = std::ssize(sent) >= around.narrowest_state() && std::ssize(sent) <= around.state_dim;
      judge_cameras(read_cameras(root), file, around, r);
      if (fits) {  // as it is normalised
        const States states = state_to_model(around.transforms, state);
        state = states[states.size() - 2];
      }
    }
    if (!fits)
      r.error("observation.dimension", "state",
              "{}: the state has {} values, this model expects {}; is it the same robot?", file,
              sent.size(), state_dims(m.opened->spec.state_dim, m.opened->spec.state_dim_min));
    else if (statistics)
      judge_state(state, sent, file, *statistics, r);
  });
}

}  // namespace

void check_robot(const Examined& m, const std::vector<std::string>& observations, Report& r) {
  const std::optional<StoredStatistics> state = check_statistics(m, r);
  check_tokenizer(m, r);
  for (const std::string& file : observations) check_observation(file, m, state, r);
}

}  // namespace tendon
