// tendon inspect: what is in a model.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/report.h"
#include "cli/verbs.h"

namespace tendon::cli {
namespace {

struct InspectOptions {
  std::string model, diff;
  OpenOptions open;
  bool json = false, tendon_json = false;
};

// Objects become indented blocks; arrays of objects become one line each.
void print(const Json& json, int indent) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_object()) {
      fmt::print("{:{}}{}\n", "", indent, key);
      print(value, indent + 2);
    } else if (value.is_array() && !value.empty() && value.front().is_object()) {
      fmt::print("{:{}}{}\n", "", indent, key);
      for (const Json& item : value) {
        std::string line;
        for (const auto& [k, v] : item.items()) line += fmt::format("{} {}  ", k, shown(v));
        fmt::print("{:{}}{}\n", "", indent + 2, line);
      }
    } else {
      fmt::print("{:{}}{:24} {}\n", "", indent, key, shown(value));
    }
  }
}

// One line per place where the two differ; returns how many.
int print_differences(const Json& a, const Json& b) {
  const Json flat_a = a.flatten(), flat_b = b.flatten();
  int differences = 0;
  const auto show = [&](const std::string& key, const std::string& x, const std::string& y) {
    if (x == y) return;
    fmt::print("{:50} {} | {}\n", key, x, y);
    ++differences;
  };
  for (const auto& [key, value] : flat_a.items())
    show(key, shown(value), flat_b.contains(key) ? shown(flat_b.at(key)) : "(absent)");
  for (const auto& [key, value] : flat_b.items())
    if (!flat_a.contains(key)) show(key, "(absent)", shown(value));
  return differences;
}

void inspect(const InspectOptions& o) {
  if (o.tendon_json) {
    fmt::print("{}\n", tendon_json(o.model, o.open));
    return;
  }
  const Json model = Json::parse(describe(o.model, o.open));
  if (!o.diff.empty()) {
    const Json other = Json::parse(describe(o.diff, o.open));
    if (o.json)
      fmt::print("{}\n", Json::diff(model, other).dump());
    else
      fmt::print("{} differences\n", print_differences(model, other));
  } else if (o.json) {
    fmt::print("{}\n", model.dump());
  } else {
    print(model, 0);
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  const auto [verb, o] = add_verb<InspectOptions>(app, "inspect", "what is in a model", inspect);
  verb.add_option("--diff", o.diff,
                  "another model: show only what differs; with --json as a JSON patch");
  verb.add_flag("--tendon-json", o.tendon_json,
                "only sizes and robot, as a tendon.json that says the same");
}

}  // namespace tendon::cli
