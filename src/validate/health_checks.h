// The parts of a health check: each looks at one side of a model and says all that is wrong there.
#pragma once

#include <fmt/format.h>

#include <filesystem>
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
struct Report : Health {
  using Level = Finding::Level;

  template <class... Args>
  void add(Level level, const std::string& check, const std::string& subject,
           fmt::format_string<Args...> text, Args&&... args) {
    findings.push_back({level, check, subject, fmt::format(text, std::forward<Args>(args)...)});
  }
  template <class... Args>
  void error(const std::string& check, const std::string& subject, fmt::format_string<Args...> text,
             Args&&... args) {
    add(Level::error, check, subject, text, std::forward<Args>(args)...);
  }
  template <class Check>
  void attempt(const std::string& check, const std::string& subject, Check run) {
    try {
      run();
    } catch (const Error& e) {
      error(check, subject, "{}", e.what());
    } catch (const nlohmann::json::exception& e) {
      error(check, subject, "{}: {}", subject, e.what());
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

// health_configuration.cc
struct Feature {
  std::string name, type;  // "observation.state", "STATE"
  int64_t size = 0;        // of its first dimension
};
// lerobot's features in the list ("input_features", ...) of `owner`; empty where it has none.
std::vector<Feature> features(const nlohmann::json& owner, const char* list);
void check_configuration(const Examined& model, Report& report);

// health_robot.cc: statistics, tokenizer, recorded observations.
void check_robot(const Examined& model, const std::vector<std::string>& observations,
                 Report& report);

}  // namespace tendon
