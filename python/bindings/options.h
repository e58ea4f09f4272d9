// OpenOptions from Python's keyword arguments.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "tendon/types.h"

namespace tendon::python {

// None counts as absent. Throws TypeError for a name that is no option, with the nearest, and for a
// value of another type. While weights load, signals are looked at as by check_signals(), and
// `report`, where it is not None, is told (bytes loaded, bytes in all).
OpenOptions read_open_options(const nanobind::dict& given,
                              nanobind::object report = nanobind::none());

std::vector<std::string> open_option_names();

// Throws what the handler of a signal raised; on threads other than the main one it does nothing.
// Called without the GIL.
void check_signals();

// Python delivers signals to its main thread, when that asks. As InferOptions::poll it asks every
// tenth of a second at most (what another thread computes may hold the GIL) and throws what the
// handler raised, KeyboardInterrupt as a rule; on other threads it is empty. Made with the GIL.
std::function<void()> poll_signals();

}  // namespace tendon::python
