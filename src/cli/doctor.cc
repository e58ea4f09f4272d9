// tendon doctor: what this machine can run, and how to get what is missing.
#include <fmt/format.h>

#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/machine.h"

namespace tendon::cli {
namespace {

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
         fmt::format("\n{} of {} kinds of tests can run, {} would be skipped\n",
                     std::ssize(tests) - skipped, tests.size(), skipped);
}

}  // namespace

void add_doctor(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "doctor", "what this machine can run: processor, devices, libraries, kinds of tests");
  const auto o = std::make_shared<OpenOptions>();
  const auto json = std::make_shared<bool>(false);
  verb->add_option("--ttnn-python", o->ttnn_python, "interpreter to look for the ttnn package in");
  verb->add_option("--ttnn-sim", o->ttnn_sim,
                   "folder made by scripts/ttnn-sim; default build/ttnn-sim");
  verb->add_flag("--json", *json, "one JSON object on standard output");
  verb->callback([o, json] {
    const Json found = to_json(examine_machine(*o));
    print_report(*json, found, doctor_text(found));
  });
}

}  // namespace tendon::cli
