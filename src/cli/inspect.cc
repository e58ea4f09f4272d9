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
std::string blocks(const Json& json, int indent) {
  std::string text;
  for (const auto& [key, value] : json.items()) {
    if (value.is_object()) {
      text += fmt::format("{:{}}{}\n{}", "", indent, key, blocks(value, indent + 2));
    } else if (value.is_array() && !value.empty() && value.front().is_object()) {
      text += fmt::format("{:{}}{}\n", "", indent, key);
      for (const Json& item : value) {
        text += std::string(static_cast<size_t>(indent) + 2, ' ');
        for (const auto& [k, v] : item.items()) text += fmt::format("{} {}  ", k, shown(v));
        text += "\n";
      }
    } else {
      text += fmt::format("{:{}}{:24} {}\n", "", indent, key, shown(value));
    }
  }
  return text;
}

// One line per place where the two differ, and how many.
std::string differences(const Json& a, const Json& b) {
  const Json flat_a = a.flatten(), flat_b = b.flatten();
  std::string text;
  int count = 0;
  const auto show = [&](const std::string& key, const std::string& x, const std::string& y) {
    if (x == y) return;
    text += fmt::format("{:50} {} | {}\n", key, x, y);
    ++count;
  };
  for (const auto& [key, value] : flat_a.items())
    show(key, shown(value), flat_b.contains(key) ? shown(flat_b.at(key)) : "(absent)");
  for (const auto& [key, value] : flat_b.items())
    if (!flat_a.contains(key)) show(key, "(absent)", shown(value));
  return text + fmt::format("{} differences\n", count);
}

void inspect(const InspectOptions& o) {
  if (o.tendon_json) {
    fmt::print("{}\n", tendon_json(o.model, o.open));
    return;
  }
  const Json model = Json::parse(describe(o.model, o.open));
  if (o.diff.empty()) return print_report(o.json, model, blocks(model, 0));
  const Json other = Json::parse(describe(o.diff, o.open));
  print_report(o.json, Json::diff(model, other), differences(model, other));
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
