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

}  // namespace tendon
