// tendon VERB [MODEL] [options]
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <string_view>
#include <system_error>
#include <vector>

#include "cli/verbs.h"
#include "tensor/nearest.h"

namespace {

using tendon::Fault;

std::vector<std::string> option_names(const CLI::App& verb) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// Says which word was not understood and the nearest one that would be.
int explain(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  const std::string word = argc > 1 ? argv[1] : "";
  std::vector<std::string> verbs;
  const CLI::App* verb = nullptr;
  for (const CLI::App* candidate : app.get_subcommands({})) {
    verbs.push_back(candidate->get_name());
    if (verbs.back() == word) verb = candidate;
  }
  if (!verb) {
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
    const std::string given = argv[i], name = given.substr(0, given.find('='));
    if (!name.starts_with("--") || std::ranges::find(options, name) != options.end()) continue;
    fmt::print(stderr, "tendon {}: unknown option '{}'; nearest: '{}'\n", verb->get_name(), name,
               tendon::nearest(name, options));
    return static_cast<int>(Fault::usage);
  }
  fmt::print(stderr, "tendon {}: {}\n", verb->get_name(), error.what());
  return static_cast<int>(Fault::usage);
}

// A model file is mapped: when it is cut short while it is in use, or its disk fails, the kernel
// sends SIGBUS. Only calls that are safe in a signal handler; any other SIGBUS is a bug and dumps.
void end_without_file(int signal, siginfo_t* about, void*) {
  if (about->si_code != BUS_ADRERR) {
    std::signal(signal, SIG_DFL);
    return;  // and faults again
  }
  constexpr std::string_view kLine =
      "tendon: a model file was cut short or became unreadable while it was in use; copy it again "
      "under another name, rename that over it, and restart\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kLine.data(), kLine.size());
  ::_exit(static_cast<int>(Fault::checkpoint));
}

void prepare_signals() {
  struct sigaction action {};
  action.sa_sigaction = end_without_file;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of write(), as a full disk
}

int out_of_memory() {
  fmt::print(stderr, "tendon: out of memory; `tendon inspect` prints what a model needs\n");
  return static_cast<int>(Fault::memory);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace tendon::cli;
  CLI::App app(
      "tendon runs pi0 and pi0.5 robot policies: images, a prompt and the robot's state in, "
      "a chunk of actions out.\nExit codes: 0 ok, 1 negative verdict, 2 usage, 3 checkpoint, "
      "4 input, 5 backend, 6 memory, 7 network, 70 internal.");
  app.require_subcommand(1);
  for (AddVerb* add :
       {add_demo, add_run, add_bench, add_certify, add_convert, add_coverage, add_doctor,
        add_inspect, add_replay, add_serve, add_tune, add_validate, add_velocity, add_version})
    add(app);
  prepare_signals();
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // -h
    return explain(app, error, argc, argv);
  } catch (const tendon::Error& error) {
    fmt::print(stderr, "tendon: {}\n", tendon::cli::printable(error.what()));
    return static_cast<int>(error.fault());
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::exception& error) {
    // The stack of another thread, as a rule.
    const auto* system = dynamic_cast<const std::system_error*>(&error);
    if (system && system->code() == std::errc::resource_unavailable_try_again)
      return out_of_memory();
    fmt::print(stderr, "tendon: internal error: {}\n", tendon::cli::printable(error.what()));
    return static_cast<int>(Fault::internal);
  }
}
