// How long things take, one after the other.
#pragma once

#include <chrono>

namespace tendon {

class StopWatch {
 public:
  // Milliseconds since the last call, or since it was made.
  double lap_ms() {
    const auto now = std::chrono::steady_clock::now();
    const double ms = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
    return ms;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace tendon
