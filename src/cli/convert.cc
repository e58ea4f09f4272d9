// tendon convert: any model -> one file that loads in seconds.
#include <fmt/format.h>

#include "cli/verbs.h"

namespace tendon::cli {
namespace {

struct ConvertOptions {
  std::string model, out;
  OpenOptions open;
};

void convert_model(const ConvertOptions& o) {
  const Converted done = convert(o.model, o.out, o.open);
  fmt::print("{}: {:.1f} MB in {:.1f} s; self-check: same actions as {}\n", o.out,
             static_cast<double>(done.bytes) / 1e6, done.seconds, o.model);
}

}  // namespace

void add_convert(CLI::App& app) {
  const auto [verb, o] = add_verb<ConvertOptions>(
      app, "convert", "any model -> one packed .safetensors", convert_model);
  verb.add_option("OUT", o.out, "file to write, ending in .safetensors")->required();
}

}  // namespace tendon::cli
