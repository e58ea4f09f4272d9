// The parts of a health check: each looks at one side of a model and says all that is wrong there.
#pragma once

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "policy/open_model.h"
#include "tendon/error.h"
#include "validate/health.h"

namespace tendon {

// Collects findings; what a reader of the engine throws becomes one too.
struct Report {
  std::vector<Finding> findings;

  void add(Finding::Level level, std::string check, std::string subject, std::string text) {
    findings.push_back({level, std::move(check), std::move(subject), std::move(text)});
  }
  void error(std::string check, std::string subject, std::string text) {
    add(Finding::Level::error, std::move(check), std::move(subject), std::move(text));
  }
  void append(std::vector<Finding> more) { std::ranges::move(more, std::back_inserter(findings)); }
  template <class Check>
  void attempt(const std::string& check, const std::string& subject, Check run) {
    try {
      run();
    } catch (const Error& e) {
      error(check, subject, e.what());
    } catch (const nlohmann::json::exception& e) {
      error(check, subject, subject + ": " + e.what());
    }
  }
};

// A model as far as it could be read.
struct Examined {
  std::string model;             // as it was named
  std::string layout;            // OpenedModel's; of a refused folder, by its files; else empty
  std::filesystem::path folder;  // empty: no folder
  OpenOptions options;
  nlohmann::json config = nlohmann::json::object();  // config.json
  std::string config_file;
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  std::optional<Config> sizes;        // that most tensors agree on
  std::optional<OpenedModel> opened;  // absent: refused

  bool pi05() const { return sizes ? sizes->pi05() : config.value("type", "") == "pi05"; }
};

// health_names.cc: every parameter present, in its shape and in a type that can be read. One
// missing or wrong tensor does not change what is expected of the others: most tensors decide.
struct Names {
  std::optional<Config> sizes;  // absent: a whole tower is missing
  std::vector<Finding> findings;
};
// `stated_state_dim`: what config.json says; 0: nothing.
Names check_names(const WeightSource& source, int64_t stated_state_dim);

// health_values.cc: each number of every float tensor.
Health check_values(const std::vector<std::shared_ptr<const SafetensorsFile>>& files, int threads);

// health_configuration.cc
struct Feature {
  std::string name, type;  // "observation.state", "STATE"
  int64_t size = 0;        // of its first dimension
};
// lerobot's features in the list ("input_features", ...) of `owner`; empty where it has none.
std::vector<Feature> features(const nlohmann::json& owner, const char* list);
std::vector<Finding> check_configuration(const Examined& model);
std::vector<Finding> check_tokenizer(const Examined& model);

// The statistics of one vector as they lie in their file: every value may be wrong.
struct StoredStatistics {
  std::string vector, file;  // "observation.state" in lerobot's files, "state" in openpi's
  NormMethod method = NormMethod::identity;
  std::map<std::string, std::vector<double>> rows = {};  // by "mean", "std", "q01", ...
  int64_t dim_min = 1, dim_max = 4096;                   // values that the model can use
};

// health_statistics.cc
std::pair<std::string, std::string> statistic_names(NormMethod method);  // {"mean", "std"}, ...
std::vector<Finding> judge(const StoredStatistics& statistics);

// health_statistics_files.cc: reads and judges the statistics of state and actions.
struct StatisticsOfModel {
  std::optional<StoredStatistics> state;
  std::vector<Finding> findings;
};
StatisticsOfModel check_statistics(const Examined& model);

// health_observations.cc: one recorded observation.
std::vector<Finding> check_observation(const std::string& file, const Examined& model,
                                       const std::optional<StoredStatistics>& state);

}  // namespace tendon
