#include <algorithm>
#include <cmath>

#include "tendon/client.h"
#include "tensor/check.h"

namespace tendon {

ActionQueue::Mark ActionQueue::mark() const {
  const std::lock_guard lock(mutex_);
  return {consumed_, clears_};
}

int64_t ActionQueue::consumed_since(const Mark& mark) const {
  const std::lock_guard lock(mutex_);
  return consumed_ - mark.consumed;
}

int64_t ActionQueue::next() const { return consumed_ - chunk_mark_.consumed; }

int64_t ActionQueue::end() const {
  return rows_max_ > 0 ? std::min(rows_max_, chunk_.rows) : chunk_.rows;
}

int64_t ActionQueue::push(const RemoteActions& chunk, const Mark& mark) {
  ensure(chunk.rows >= 0 && chunk.dim > 0 && std::ssize(chunk.values) == chunk.rows * chunk.dim,
         Fault::usage, "a chunk has {} values, expected {} rows of {}", chunk.values.size(),
         chunk.rows, chunk.dim);
  const std::lock_guard lock(mutex_);
  ensure(mark.consumed <= consumed_, Fault::usage,
         "a chunk for an observation after {} actions, but only {} were consumed", mark.consumed,
         consumed_);
  if (pushes_++ > 0) slowest_ms_ = std::max(slowest_ms_, chunk.round_trip_ms);
  const bool newer = mark.clears == clears_ && mark.consumed >= chunk_mark_.consumed;
  if (newer) {
    chunk_ = chunk;
    chunk_mark_ = mark;
  }
  return std::max<int64_t>(end() - next(), 0);
}

std::optional<std::vector<double>> ActionQueue::pop() {
  const std::lock_guard lock(mutex_);
  if (next() >= end()) return {};
  const auto begin = chunk_.values.begin() + next() * chunk_.dim;
  ++consumed_;
  return std::vector<double>(begin, begin + chunk_.dim);
}

int64_t ActionQueue::size() const {
  const std::lock_guard lock(mutex_);
  return std::max<int64_t>(end() - next(), 0);
}

void ActionQueue::clear() {
  const std::lock_guard lock(mutex_);
  chunk_ = {};
  ++clears_;
  chunk_mark_ = {consumed_, clears_};
}

// Row 0 of the chunk was due when the robot was at chunk_mark_; rows and actions go in step.
int64_t ActionQueue::row_at(const Mark& mark) const {
  return mark.clears == clears_ ? mark.consumed - chunk_mark_.consumed : -1;
}

ActionChunk ActionQueue::left_over() const {
  const std::lock_guard lock(mutex_);
  return chunk_.from(next());
}

ActionChunk ActionQueue::left_over(const Mark& mark) const {
  const std::lock_guard lock(mutex_);
  return chunk_.from(row_at(mark));
}

int64_t ActionQueue::steps(double control_hz) const {
  ensure(std::isfinite(control_hz) && control_hz > 0, Fault::usage,
         "control_hz is {}, expected actions per second", control_hz);
  return static_cast<int64_t>(std::ceil(slowest_ms_ * control_hz / 1e3));
}

int64_t ActionQueue::delay_steps(double control_hz) const {
  const std::lock_guard lock(mutex_);
  return steps(control_hz);
}

RemoteOptions ActionQueue::guidance(double control_hz, const Mark& mark) const {
  const std::lock_guard lock(mutex_);
  RemoteOptions options;
  options.prev_chunk = chunk_.from(row_at(mark));
  if (options.prev_chunk.rows > 0)
    options.inference_delay = std::min(steps(control_hz), options.prev_chunk.rows);
  return options;
}

}  // namespace tendon
