// tendon doctor: what this machine can run, and how to get what is missing.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/verbs.h"
#include "tendon/machine.h"

namespace tendon::cli {
namespace {

void print_text(const Machine& m) {
  fmt::print("tendon {}\n\n", version());
  for (const MachineFact& f : m.facts) {
    fmt::print("{} {:37} {}\n", f.there ? "+" : "-", f.what, f.found);
    if (!f.get.empty()) fmt::print("  {:37} {}\n", "", f.get);
  }
  int64_t skipped = 0;
  fmt::print("\ntests that can run here\n");
  for (const MachineFact& t : m.tests) {
    fmt::print("{} {:37} {}\n", t.there ? "+" : "-", t.what, t.found);
    skipped += !t.there;
  }
  fmt::print("\n{} of {} kinds of tests can run, {} would be skipped\n",
             std::ssize(m.tests) - skipped, m.tests.size(), skipped);
}

void print_json(const Machine& m) {
  nlohmann::json json{{"version", version()}};
  for (const MachineFact& f : m.facts)
    json["machine"].push_back(
        {{"what", f.what}, {"there", f.there}, {"found", f.found}, {"get", f.get}});
  for (const MachineFact& t : m.tests)
    json["tests"].push_back({{"name", t.what}, {"runs", t.there}, {"why", t.found}});
  fmt::print("{}\n", json.dump());
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
    const Machine machine = examine_machine(*o);
    if (*json) {
      print_json(machine);
    } else {
      print_text(machine);
    }
  });
}

}  // namespace tendon::cli
