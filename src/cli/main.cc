// tendon VERB [MODEL] [options]
#include <fmt/format.h>

#include <vector>

#include "cli/verbs.h"
#include "tensor/nearest.h"

namespace {

using tendon::Fault;

std::vector<std::string> verb_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands({})) names.push_back(verb->get_name());
  return names;
}

std::vector<std::string> option_names(const CLI::App& verb) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// Says which word was not understood and the nearest one that would be.
int explain(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  const std::vector<std::string> verbs = verb_names(app);
  const CLI::App* verb = nullptr;
  for (const CLI::App* candidate : app.get_subcommands({}))
    if (argc > 1 && candidate->get_name() == argv[1]) verb = candidate;
  if (!verb) {
    const std::string word = argc > 1 ? argv[1] : "";
    if (word.empty()) {
      fmt::print(stderr, "tendon: a verb is needed; see tendon -h\n");
    } else {
      fmt::print(stderr, "tendon: unknown verb '{}'; nearest: '{}'\n", word,
                 tendon::nearest(word, verbs));
    }
    return static_cast<int>(Fault::usage);
  }
  const std::vector<std::string> options = option_names(*verb);
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i], name = word.substr(0, word.find('='));
    if (!name.starts_with("--") || std::ranges::find(options, name) != options.end()) continue;
    fmt::print(stderr, "tendon {}: unknown option '{}'; nearest: '{}'\n", verb->get_name(), name,
               tendon::nearest(name, options));
    return static_cast<int>(Fault::usage);
  }
  fmt::print(stderr, "tendon {}: {}\n", verb->get_name(), error.what());
  return static_cast<int>(Fault::usage);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "tendon runs pi0 and pi0.5 robot policies: images, a prompt and the robot's state in, "
      "a chunk of actions out.\nExit codes: 0 ok, 1 negative verdict, 2 usage, 3 checkpoint, "
      "4 input, 5 backend, 6 memory, 7 network, 70 internal.");
  app.require_subcommand(1);
  tendon::cli::add_demo(app);
  tendon::cli::add_run(app);
  tendon::cli::add_bench(app);
  tendon::cli::add_convert(app);
  tendon::cli::add_coverage(app);
  tendon::cli::add_doctor(app);
  tendon::cli::add_inspect(app);
  tendon::cli::add_replay(app);
  tendon::cli::add_serve(app);
  tendon::cli::add_validate(app);
  tendon::cli::add_version(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // -h
    return explain(app, error, argc, argv);
  } catch (const tendon::Error& error) {
    fmt::print(stderr, "tendon: {}\n", error.what());
    return static_cast<int>(error.fault());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "tendon: out of memory; `tendon inspect` prints what a model needs\n");
    return static_cast<int>(Fault::memory);
  } catch (const std::exception& error) {
    fmt::print(stderr, "tendon: internal error: {}\n", error.what());
    return static_cast<int>(Fault::internal);
  }
}
