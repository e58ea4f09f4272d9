#include "serve/session.h"

namespace tendon {

bool RequestLine::put(Waiting request) {
  bool replaced = false;
  {
    const std::lock_guard lock(mutex_);
    const ConnectionId id = request.session->id;
    replaced = waiting_.contains(id);
    request.session->queued = 1;
    waiting_[id] = std::move(request);
  }
  arrived_.notify_one();
  return replaced;
}

std::optional<Waiting> RequestLine::take() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return closed_ || !waiting_.empty(); });
  if (closed_) return {};
  auto next = waiting_.upper_bound(last_);
  if (next == waiting_.end()) next = waiting_.begin();
  last_ = next->first;
  Waiting request = std::move(next->second);
  waiting_.erase(next);
  request.session->queued = 0;
  return request;
}

void RequestLine::forget(ConnectionId id) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(id);
}

void RequestLine::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  arrived_.notify_all();
}

}  // namespace tendon
