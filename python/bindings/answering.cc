#include "answering.h"

#include "options.h"

namespace tendon::python {

namespace nb = nanobind;

Answering::Answering(const std::string& model, const nb::dict& given) {
  OpenOptions options = read_open_options(given);
  options.progress = progress_to(nb::none());
  const nb::gil_scoped_release released;
  ServedPolicy policy = open_served(model, options);
  metrics_.set_card(policy.card);
  metrics_.set_state(ServerState::ready, "answering requests");
  greeting_ = write_greeting(policy.card, Dialect::openpi);
  fingerprint_ = policy.card.fingerprint;
  handler_ = std::make_unique<RequestHandler>(std::move(policy), RequestOptions{}, metrics_,
                                              [](const std::string&) {});
}

nb::bytes Answering::greeting() const { return nb::bytes(greeting_.data(), greeting_.size()); }

ConnectionId Answering::connect() {
  const std::lock_guard lock(sessions_mutex_);
  auto session = std::make_shared<Session>();
  session->id = ++last_;
  sessions_.emplace(session->id, session);
  return session->id;
}

void Answering::disconnect(ConnectionId id) {
  const std::lock_guard lock(sessions_mutex_);
  sessions_.erase(id);
}

nb::tuple Answering::answer(ConnectionId id, const nb::bytes& message) {
  const auto bytes = bytes_of({message.c_str(), message.size()});
  QueuedRequest request{.message = Bytes(bytes.begin(), bytes.end()), .received = Clock::now()};
  Answer answer;
  {
    const nb::gil_scoped_release released;
    {
      const std::lock_guard lock(sessions_mutex_);
      request.session = sessions_.at(id);
    }
    ++waiting_;
    const std::lock_guard turn(turn_);
    answer = handler_->answer(request);
    --waiting_;
  }
  const nb::object code = answer.close ? nb::cast(static_cast<int>(*answer.close)) : nb::none();
  return nb::make_tuple(nb::bytes(answer.message.data(), answer.message.size()), answer.text, code);
}

std::string Answering::failure() const {
  return metrics_.state() == ServerState::failed ? metrics_.reason() : "";
}

}  // namespace tendon::python
