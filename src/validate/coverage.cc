#include "validate/coverage.h"

#include <fmt/format.h>

#include <map>
#include <set>
#include <sstream>

namespace tendon {
namespace {

std::set<std::string> lines_of(const std::string& text) {
  std::set<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);)
    if (!line.empty() && line[0] != '#') lines.insert(line);
  return lines;
}

}  // namespace

Audit audit_call(OpenedEngine& engine, const Observation& observation, const InferOptions& options,
                 int64_t warm_up, Actions* actions) {
  for (int64_t i = 0; i < warm_up; ++i) engine.policy->infer(observation, options);
  Audit audit;
  engine.ops.observe([&](const OpEvent& event) { audit.add(event); });
  Actions a = engine.policy->infer(observation, options);
  engine.ops.observe({});
  if (engine.kernels->traits()
          .simulated)  // what ran on the host has times, which are not the whole
    for (AuditEntry& entry : audit.entries) entry.call.seconds = 0;
  if (actions) *actions = std::move(a);
  return audit;
}

std::string expectation(const Audit& audit) {
  std::map<std::string, int64_t> calls;
  for (const AuditEntry& e : audit.entries)
    ++calls[fmt::format("{} {} {}", name(e.module), e.call.name, e.device ? "device" : "host")];
  std::string text;
  for (const auto& [what, count] : calls) text += fmt::format("{} {}\n", what, count);
  return text;
}

std::string difference(const std::string& expected, const std::string& found) {
  const std::set<std::string> before = lines_of(expected), now = lines_of(found);
  std::string text;
  for (const std::string& line : before)
    if (!now.contains(line)) text += "- " + line + "\n";
  for (const std::string& line : now)
    if (!before.contains(line)) text += "+ " + line + "\n";
  return text;
}

}  // namespace tendon
