#include "backends/reference/reference.h"

#include "backends/reference/reference_kernels.h"

namespace tendon {

std::unique_ptr<Kernels> make_reference_backend(const ReferenceOptions& options) {
  return std::make_unique<reference::ReferenceKernels>(options);
}

}  // namespace tendon
