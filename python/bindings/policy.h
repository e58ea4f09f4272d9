// The classes of the module.
#pragma once

#include <nanobind/nanobind.h>

namespace tendon::python {

// LocalPolicy, a policy in this process; RemotePolicy, one behind a server; Answering, what
// `tendon serve` answers.
void add_policies(nanobind::module_& m);

}  // namespace tendon::python
