#include "tensor/parallel.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace tendon {

int hardware_threads() {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t pieces = std::clamp<int64_t>(count, 1, std::max(threads, 1));
  std::vector<std::exception_ptr> faults(static_cast<size_t>(pieces));
  const auto run = [&](int64_t piece) {
    try {
      body(count * piece / pieces, count * (piece + 1) / pieces);
    } catch (const std::exception&) {
      faults[static_cast<size_t>(piece)] = std::current_exception();
    }
  };
  std::vector<std::jthread> others;
  for (int64_t piece = 1; piece < pieces; ++piece) others.emplace_back(run, piece);
  run(0);
  others.clear();
  for (const std::exception_ptr& fault : faults)
    if (fault) std::rethrow_exception(fault);
}

}  // namespace tendon
