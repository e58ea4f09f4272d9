// tendon doctor: what this machine can run, and how to get what is missing.
#include <fmt/format.h>

#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/backends.h"
#include "tendon/machine.h"

namespace tendon::cli {
namespace {

struct DoctorOptions {
  OpenOptions device;
  bool open = false, json = false;
};

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

void doctor(const DoctorOptions& o) {
  Json found = examine_machine(o.device);
  if (o.open)
    for (const auto& [what, is] : device_facts(o.device)) found["device"][what] = is;
  print_report(o.json, found, doctor_text(found));
}

}  // namespace

void add_doctor(CLI::App& app) {
  const auto [verb, o] = add_verb<DoctorOptions>(
      app, "doctor", "what this machine can run: processor, devices, libraries, kinds of tests",
      doctor);
  add_device_options(verb, o.device);
  verb.add_flag("--open", o.open,
                "open the ttnn device that the options name, and print what the library says of "
                "it: architecture, grid, memory, version");
}

}  // namespace tendon::cli
