// The only place that knows the backends by name: which there are and how each is opened.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/kernels.h"
#include "tendon/types.h"

namespace tendon {

// `o` with the backend that "auto" means here and the precision that it takes by default. Throws
// Error(Fault::usage) for a backend or precision that does not exist.
OpenOptions resolved(OpenOptions o);

// Whether token embeddings lie in the memory of the backend's device rather than in mapped files.
bool keeps_table(const OpenOptions& o);

// Of resolved options. Throws Error(Fault::backend) when the device is missing.
std::unique_ptr<Kernels> open_backend(const OpenOptions& o);

// `o` for another backend, in the precision that it takes by default: without what only the one
// before has.
OpenOptions moved_to(OpenOptions o, const std::string& backend);

// What the library says of the ttnn device that `o` names, which is opened for it: {"arch",
// "wormhole_b0"}, {"grid", "8 x 9 cores"}, ... Throws as open_backend() does.
std::vector<std::pair<std::string, std::string>> device_facts(const OpenOptions& o);

}  // namespace tendon
