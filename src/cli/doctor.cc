// tendon doctor: what this machine can run, and how to get what is missing.
#include <fmt/format.h>

#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/backends.h"
#include "tendon/machine.h"

namespace tendon::cli {
namespace {

// A line per entry.
std::string pairs(const Json& entries) {
  Json rows;
  for (const auto& [what, is] : entries.items()) rows.push_back({{"what", what}, {"is", is}});
  return table("{what} | {is}", rows);
}

std::string doctor_text(const Json& json) {
  Json missing = Json::array();
  for (const Json& fact : json.at("machine"))
    if (!fact.at("get").get_ref<const std::string&>().empty()) missing.push_back(fact);
  const Json& tests = json.at("tests");
  int64_t skipped = 0;
  for (const Json& test : tests) skipped += !test.at("runs");
  return lines("tendon {version}\n", json) +
         table("{there:+|-} | {what} | {found}", json.at("machine")) +
         "\nhow to get what is missing\n" + table("{what} | {get}", missing) +
         "\ntests that can run here\n" + table("{runs:+|-} | {name} | {why}", tests) +
         (json.contains("device") ? "\nthe device\n" + pairs(json.at("device")) : "") +
         fmt::format("\n{} of {} kinds of tests can run, {} would be skipped\n",
                     std::ssize(tests) - skipped, tests.size(), skipped);
}

}  // namespace

void add_doctor(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "doctor", "what this machine can run: processor, devices, libraries, kinds of tests");
  const auto o = std::make_shared<OpenOptions>();
  const auto json = std::make_shared<bool>(false), open = std::make_shared<bool>(false);
  add_device_options(*verb, *o);
  verb->add_flag("--open", *open,
                 "open the ttnn device that the options name, and print what the library says of "
                 "it: architecture, grid, memory, version");
  verb->add_flag("--json", *json, "one JSON object on standard output");
  verb->callback([o, json, open] {
    Json found = to_json(examine_machine(*o));
    if (*open)
      for (const auto& [what, is] : device_facts(*o)) found["device"][what] = is;
    print_report(*json, found, doctor_text(found));
  });
}

}  // namespace tendon::cli
