// How a policy uses its ttnn device: formats, fidelity and where results lie, from their names.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// Which results of calls lie in L1, while they fit; the others, weights and caches are in DRAM.
enum class Placement : uint8_t {
  norms,  // the input of the next product
  all,    // whatever one call hands to the next
  none,
};

struct Use {
  std::string precision;  // as given: "bf16,expert=bfp8"
  Format format = Format::bf16;
  // Of each module's large weights, and with them of its q, k, v and cache.
  std::array<Format, kModuleCount> formats{};
  std::optional<Fidelity> fidelity;  // else hifi2 where the weight is bfp8, hifi4 where it is not
  Placement placement = Placement::norms;
  // What the device makes itself, instead of the host.
  bool makes_patches = false, makes_times = false;
};

// `precision`: a format, then modules that have another: "bf16,expert=bfp8". Throws
// Error(Fault::usage) naming what is wrong in them and what there is.
Use use_of(const std::string& precision, const TtnnOptions& options);

// Columns and rows of a grid, of "8x7". Throws Error(Fault::usage).
struct Grid {
  int64_t x = 0, y = 0;
};
Grid grid_of(const std::string& text);

// What was chosen other than by default, in words: ", hifi2, results in L1"; mostly empty.
std::string in_words(const Use& use);

}  // namespace tendon::tt
