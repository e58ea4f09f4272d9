#include "serve/session.h"

namespace tendon {

RequestQueue::Put RequestQueue::put(QueuedRequest request) {
  Put done{};
  {
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<Session> session = request.session;
    std::vector<QueuedRequest>& waiting = waiting_[session->id];
    done.replaced = session->latest_wins && !waiting.empty();
    if (done.replaced) waiting.pop_back();
    waiting.push_back(std::move(request));
    done.full = waiting.size() > 1;
    session->queued = static_cast<int>(waiting.size());
  }
  arrived_.notify_one();
  return done;
}

std::optional<QueuedRequest> RequestQueue::take() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return closed_ || !waiting_.empty(); });
  if (closed_) return {};
  auto next = waiting_.end();
  do {
    next = waiting_.upper_bound(last_);
    if (next == waiting_.end()) next = waiting_.begin();
    last_ = next->first;
  } while (waiting_.size() > 1 && next->second.front().session->turns_owed-- > 0);
  next->second.front().session->turns_owed = 0;
  QueuedRequest request = std::move(next->second.front());
  next->second.erase(next->second.begin());
  request.session->queued = static_cast<int>(next->second.size());
  if (next->second.empty()) waiting_.erase(next);
  return request;
}

void RequestQueue::forget(ConnectionId id) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(id);
}

void RequestQueue::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  arrived_.notify_all();
}

}  // namespace tendon
