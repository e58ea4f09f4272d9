// Splits a range over a few short-lived threads: for work that takes milliseconds or more.
#pragma once

#include <cstdint>
#include <functional>

namespace tendon {

int hardware_threads();  // at least 1

// Calls body(first, last) for consecutive pieces of [0, count), on `threads` threads; pieces are
// equal up to rounding and do not depend on timing. The first exception is rethrown.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace tendon
