// One function per verb: adds its options to the command line and says what to do when it is
// chosen.
#pragma once

#include <CLI/CLI.hpp>

#include "tendon/tendon.h"

namespace tendon::cli {

void add_replay(CLI::App& app);
void add_run(CLI::App& app);
void add_bench(CLI::App& app);
void add_certify(CLI::App& app);
void add_convert(CLI::App& app);
void add_coverage(CLI::App& app);
void add_demo(CLI::App& app);
void add_doctor(CLI::App& app);
void add_inspect(CLI::App& app);
void add_serve(CLI::App& app);
void add_tune(CLI::App& app);
void add_validate(CLI::App& app);
void add_velocity(CLI::App& app);
void add_version(CLI::App& app);

// MODEL, optional where `model` holds a default, and the options that decide how it is opened; both
// must outlive the parse.
void add_model_options(CLI::App& verb, std::string& model, OpenOptions& options);

// Those of them that say which device it is.
void add_device_options(CLI::App& verb, OpenOptions& options);

// Text that quotes a file, cut and without what would clear a terminal.
std::string printable(std::string_view text);

// The first line of --api-key-file. Fault::usage when there is none.
std::string read_key(const std::string& path);

}  // namespace tendon::cli
