// The ttnn library behind tt_api.h: a Python process that holds the library and one device.
#pragma once

#include <string>

#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

// Options that open the TTNN library on a simulated Wormhole, from a folder made by
// scripts/ttnn-sim: its interpreter, and the lines of its file `environment`. Throws
// Error(Fault::backend) when the folder does not hold both.
WorkerOptions simulator_options(const std::string& folder);

// Where the time of calls went. total_s - library_s is the worker's own: socket, coding, waking up.
struct WorkerTimes {
  double total_s = 0;    // as the caller saw it
  double library_s = 0;  // inside the library
};
// Of all calls of this device so far; zeros if `api` is not a worker.
WorkerTimes worker_times(const TtApi& api);

}  // namespace tendon::tt
