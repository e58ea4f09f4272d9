#include "backends/ttnn/use.h"

#include <algorithm>
#include <charconv>
#include <sstream>

#include "tensor/check.h"

namespace tendon::tt {
namespace {

constexpr std::array<std::string_view, 2> kWeightFormats = {"bf16", "bfp8"};
constexpr std::array<std::string_view, 3> kPlacements = {"auto", "l1", "dram"};  // as Placement
constexpr std::array<std::string_view, 2> kMakes = {"patches", "times"};
constexpr std::array kModules = {Module::siglip, Module::vlm, Module::expert};
constexpr int64_t kGridMax = 32;  // cores a row or column; no chip has as many

// The place of `word` among `names`.
template <class Names>
size_t place_in(const Names& names, std::string_view word, std::string_view what) {
  const auto found = std::ranges::find(names, word);
  ensure(found != names.end(), Fault::usage, "{} '{}': there are: {}", what, word,
         fmt::join(names, ", "));
  return static_cast<size_t>(found - names.begin());
}

Format weight_format(std::string_view word) {
  return static_cast<Format>(place_in(kWeightFormats, word, "the ttnn backend has no precision"));
}

void set_module(Use& use, const std::string& part) {
  const size_t equals = part.find('=');
  ensure(equals != std::string::npos, Fault::usage,
         "--precision {}: behind the first format come MODULE=FORMAT, such as expert=bfp8",
         use.precision);
  const Module module = module_named(part.substr(0, equals));
  ensure(std::ranges::find(kModules, module) != kModules.end(), Fault::usage,
         "--precision {}: {} has no large weights; siglip, vlm and expert have", use.precision,
         name(module));
  use.formats[static_cast<size_t>(module)] = weight_format(part.substr(equals + 1));
}

}  // namespace

Use use_of(const std::string& precision, const TtnnOptions& options) {
  Use use{.precision = precision};
  std::istringstream parts(precision);
  std::string part;
  std::getline(parts, part, ',');
  use.format = weight_format(part);
  use.formats.fill(use.format);
  while (std::getline(parts, part, ',')) set_module(use, part);
  if (!options.fidelity.empty())
    use.fidelity =
        static_cast<Fidelity>(place_in(kFidelities, options.fidelity, "unknown --fidelity"));
  if (!options.memory.empty())
    use.placement =
        static_cast<Placement>(place_in(kPlacements, options.memory, "unknown --memory"));
  std::istringstream made(options.on_device);
  while (std::getline(made, part, ','))
    (place_in(kMakes, part, "unknown --on-device") == 0 ? use.makes_patches : use.makes_times) =
        true;
  return use;
}

Grid grid_of(const std::string& text) {
  Grid grid;
  const char* const end = text.data() + text.size();
  const auto [x, no_x] = std::from_chars(text.data(), end, grid.x);
  const bool both = no_x == std::errc() && x != end && *x == 'x';
  const auto [y, no_y] = both ? std::from_chars(x + 1, end, grid.y)
                              : std::from_chars_result{x, std::errc::invalid_argument};
  ensure(no_y == std::errc() && y == end && std::min(grid.x, grid.y) >= 1 &&
             std::max(grid.x, grid.y) <= kGridMax,
         Fault::usage, "--grid {}: expected columns by rows of cores, 1 to {} of each, such as 8x7",
         text, kGridMax);
  return grid;
}

std::string in_words(const Use& use) {
  std::string words;
  if (use.fidelity) words += fmt::format(", {}", name_in(kFidelities, *use.fidelity));
  if (use.placement == Placement::all) words += ", results in L1";
  if (use.placement == Placement::none) words += ", all in DRAM";
  if (use.makes_patches || use.makes_times)
    words += fmt::format(", {}{}{} on the device", use.makes_patches ? "patches" : "",
                         use.makes_patches && use.makes_times ? " and " : "",
                         use.makes_times ? "times" : "");
  return words;
}

}  // namespace tendon::tt
