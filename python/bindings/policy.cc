#include "policy.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>

#include "client/wire_fields.h"
#include "message.h"
#include "options.h"
#include "serve/metrics.h"
#include "serve/model_card.h"
#include "serve/request.h"
#include "serve/request_handler.h"
#include "tendon/client.h"
#include "tensor/check.h"

namespace tendon::python {
namespace {

namespace nb = nanobind;
using namespace nb::literals;

// A NumPy array that owns its values.
nb::object to_numpy(std::vector<double> values, int64_t rows, int64_t dim) {
  auto kept = std::make_unique<std::vector<double>>(std::move(values));
  double* data = kept->data();
  const nb::capsule owner(kept.release(),
                          [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, double, nb::ndim<2>>(
      data, {static_cast<size_t>(rows), static_cast<size_t>(dim)}, owner));
}

struct ToDict {
  nb::dict& dict;
  template <class T>
  void operator()(const char* key, const T& value) const {
    dict[key] = value;
  }
};

template <class Numbers>
nb::dict dict_of(const Numbers& numbers) {
  nb::dict out;
  for (const auto& [name, number] : numbers) out[name.c_str()] = number;
  return out;
}

nb::dict dict_of(const StageTimes& times) {
  nb::dict out;
  out["infer_ms"] = network_ms(times);
  stage_fields(times, ToDict{out});
  out["total_ms"] = times.total_ms;
  return out;
}

nb::object one_or_list(const std::vector<nb::dict>& rows, bool list) {
  return list ? nb::cast(rows) : nb::object(rows.at(0));
}

// What threads use in turns, in the process that made it. A forked child is refused: it has none of
// the engine's threads and shares the connection's bytes.
template <class T>
class InTurns {
 public:
  ~InTurns() { end(); }
  void end() {
    if (pid_ != ::getpid()) {
      // NOLINTNEXTLINE: an end would wait for threads that are not here, or close a connection
      thing.release();
      return;
    }
    const nb::gil_scoped_release released;
    thing.reset();
  }
  // Waits without the GIL, which the caller has released; `poll` may end it.
  std::unique_lock<std::timed_mutex> take_turn(const std::function<void()>& poll) {
    ensure(pid_ == ::getpid(), Fault::usage,
           "this policy was opened in process {}, of which this one ({}) is a fork without its "
           "threads: open the policy after the fork, or use multiprocessing's start method 'spawn'",
           pid_, ::getpid());
    std::unique_lock lock(mutex_, std::defer_lock);
    while (!lock.try_lock_for(std::chrono::milliseconds(100)))
      if (poll) poll();
    return lock;
  }

  std::unique_ptr<T> thing;

 private:
  std::timed_mutex mutex_;
  const int pid_ = ::getpid();
};

class LocalPolicy {
 public:
  LocalPolicy(const std::string& model, const nb::dict& options, nb::object progress) {
    const OpenOptions open = read_open_options(options, std::move(progress));
    const nb::gil_scoped_release released;
    engine_.thing = std::make_unique<Engine>(Engine::open(model, open));
    card_ = model_card(model, *engine_.thing);
  }

  // What a server answers to `message`, one observation or {"batch": [observation, ...]}, with
  // `additions`, keys that replace those of each: a dictionary, or a list of them.
  nb::object infer(const nb::dict& given, const nb::dict& additions, std::optional<int64_t> steps) {
    const Message message(given, additions);
    const std::function<void()> poll = poll_signals();
    std::vector<Actions> all;
    bool list = false;
    {
      const nb::gil_scoped_release released;
      const Requests requests = read_requests(message.map(), card_, Dialect::openpi);
      const std::vector<BatchRow> rows = batch_rows(requests, [&](const Request& request) {
        InferOptions options{.seed = request.seed.value_or(0), .steps = steps, .poll = poll};
        options.noise.assign(request.noise.values.begin(), request.noise.values.end());
        if (request.prev_chunk.rows > 0)
          options.previous = guidance_by(request.prev_chunk, request, {}, card_.horizon);
        return options;
      });
      list = requests.list;
      const std::unique_lock turn = engine_.take_turn(poll);
      all = engine_.thing->infer_batch(rows);
    }
    std::vector<nb::dict> out;
    for (Actions& actions : all) {
      nb::dict& row = out.emplace_back();
      row["actions"] = to_numpy(std::move(actions.values), actions.horizon, actions.dim);
      row["policy_timing"] = dict_of(actions.times);
      row["warnings"] = actions.warnings;
    }
    return one_or_list(out, list);
  }

  nb::dict metadata() const {
    nb::dict out;
    greeting_fields(card_, ToDict{out});
    out["backend"] = card_.backend;
    out["method"] = card_.method;
    out["action_dim"] = card_.action_dim;
    out["model_action_dim"] = card_.model_action_dim;
    out["state_dim"] = card_.state_dim;
    out["steps"] = card_.steps;
    out["load_ms"] = card_.load_ms;
    return out;
  }

  std::vector<std::string> notes() const { return card_.notes; }

 private:
  InTurns<Engine> engine_;
  ModelCard card_;
};

class ServedByOthers {
 public:
  ServedByOthers(const std::string& url, const std::string& api_key, double timeout_s) {
    const nb::gil_scoped_release released;
    client_.thing = std::make_unique<PolicyClient>(
        url,
        PolicyClient::Options{.api_key = api_key, .timeout_s = timeout_s, .poll = check_signals});
  }

  nb::object infer(const nb::dict& given, const nb::dict& additions) {
    const Message message(given, additions);
    const std::function<void()> poll = poll_signals();
    PolicyClient::Replies replies;
    {
      const nb::gil_scoped_release released;
      const std::unique_lock turn = client_.take_turn(poll);
      std::string request;
      msgpack::Writer(request).value(message.map());
      replies = client().ask_rows(request);
    }
    std::vector<nb::dict> out;
    for (RemoteActions& reply : replies.rows) {
      nb::dict& row = out.emplace_back();
      row["actions"] = to_numpy(std::move(reply.values), reply.rows, reply.dim);
      row["policy_timing"] = dict_of(reply.policy_timing);
      row["server_timing"] = dict_of(reply.server_timing);
      row["round_trip_ms"] = reply.round_trip_ms;
      if (!reply.request_id.empty()) row["request_id"] = reply.request_id;
    }
    return one_or_list(out, replies.list);
  }

  nb::dict metadata() const {
    nb::dict out;
    greeting_fields(client().policy(), ToDict{out});
    return out;
  }

  void close() { client_.end(); }

 private:
  PolicyClient& client() const {
    ensure(client_.thing != nullptr, Fault::network,
           "this connection was closed: call connect() again");
    return *client_.thing;
  }

  InTurns<PolicyClient> client_;
};

// What `tendon serve` answers, without its sockets: for endpoints of other servers.
class Answering {
 public:
  // Opens `model` and runs it once. Throws what open_served() throws.
  Answering(const std::string& model, const nb::dict& given) {
    const OpenOptions options = read_open_options(given);
    const nb::gil_scoped_release released;
    ServedPolicy policy = open_served(model, options);
    metrics_.set_card(policy.card);
    metrics_.set_state(ServerState::ready, "answering requests");
    greeting_ = write_greeting(policy.card, Dialect::openpi);
    handler_ = std::make_unique<RequestHandler>(std::move(policy), RequestOptions{}, metrics_,
                                                [](const std::string&) {});
  }

  nb::bytes greeting() const { return nb::bytes(greeting_.data(), greeting_.size()); }

  std::shared_ptr<Session> connect() {
    auto connection = std::make_shared<Session>();
    connection->id = ++last_;
    return connection;
  }

  // (message, whether it is an error's text, the code to close with or None). Calls of several
  // threads take turns; those of one connection come one after the other.
  nb::tuple answer(const std::shared_ptr<Session>& connection, const nb::bytes& message) {
    const auto bytes = bytes_of({message.c_str(), message.size()});
    const QueuedRequest request{connection, Bytes(bytes.begin(), bytes.end()), Clock::now()};
    Answer answer;
    {
      const nb::gil_scoped_release released;
      ++waiting_;
      const std::lock_guard turn(turn_);
      answer = handler_->answer(request);
      --waiting_;
    }
    const nb::object code = answer.close ? nb::cast(static_cast<int>(*answer.close)) : nb::none();
    return nb::make_tuple(nb::bytes(answer.message.data(), answer.message.size()), answer.text,
                          code);
  }

  // Messages that wait or are being answered.
  int64_t waiting() const { return waiting_; }

  // Why the policy serves no more; "" as long as it does.
  std::string failure() const {
    return metrics_.state() == ServerState::failed ? metrics_.reason() : "";
  }

 private:
  Metrics metrics_;
  std::unique_ptr<RequestHandler> handler_;
  std::string greeting_;
  std::mutex turn_;
  std::atomic<ConnectionId> last_ = 0;
  std::atomic<int64_t> waiting_ = 0;
};

}  // namespace

void add_policies(nb::module_& m) {
  nb::class_<LocalPolicy>(m, "LocalPolicy")
      .def(nb::init<const std::string&, const nb::dict&, nb::object>(), "model"_a, "options"_a,
           "progress"_a.none())
      .def("infer", &LocalPolicy::infer, "message"_a, "additions"_a, "steps"_a.none())
      .def("metadata", &LocalPolicy::metadata)
      .def("notes", &LocalPolicy::notes);
  nb::class_<ServedByOthers>(m, "RemotePolicy")
      .def(nb::init<const std::string&, const std::string&, double>(), "url"_a, "api_key"_a,
           "timeout_s"_a)
      .def("infer", &ServedByOthers::infer, "message"_a, "additions"_a)
      .def("metadata", &ServedByOthers::metadata)
      .def("close", &ServedByOthers::close);
  nb::class_<Session>(m, "Session");
  nb::class_<Answering>(m, "Answering")
      .def(nb::init<const std::string&, const nb::dict&>(), "model"_a, "options"_a)
      .def("greeting", &Answering::greeting)
      .def("connect", &Answering::connect)
      .def("answer", &Answering::answer, "connection"_a, "message"_a)
      .def("waiting", &Answering::waiting)
      .def("failure", &Answering::failure);
}

}  // namespace tendon::python
