#include "policy.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "client/wire_fields.h"
#include "message.h"
#include "options.h"
#include "serve/request.h"
#include "tensor/check.h"

namespace tendon::python {
namespace {

namespace nb = nanobind;

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
  for (const auto& [name, ms] : stage_timing(times))
    out[nb::str(name.data())] = std::get<double>(*ms);
  out["total_ms"] = times.total_ms;
  return out;
}

nb::object one_or_list(const std::vector<nb::dict>& rows, bool list) {
  return list ? nb::cast(rows) : nb::object(rows.at(0));
}

}  // namespace

int Turns::own_pid() { return ::getpid(); }

bool Turns::is_own_process() const { return pid_ == own_pid(); }

std::unique_lock<std::timed_mutex> Turns::take(const std::function<void()>& poll) {
  ensure(is_own_process(), Fault::usage,
         "this policy was opened in process {}, of which this one ({}) is a fork without its "
         "threads: open the policy after the fork, or use multiprocessing's start method 'spawn'",
         pid_, own_pid());
  std::unique_lock lock(mutex_, std::defer_lock);
  while (!lock.try_lock_for(std::chrono::milliseconds(100)))
    if (poll) poll();
  return lock;
}

LocalPolicy::LocalPolicy(const std::string& model, const nb::dict& options, nb::object progress) {
  OpenOptions open = read_open_options(options);
  open.progress = progress_to(std::move(progress));
  const nb::gil_scoped_release released;
  engine_ = std::make_unique<Engine>(Engine::open(model, open));
  card_ = model_card(model, *engine_);
}

LocalPolicy::~LocalPolicy() {
  if (!turns_.is_own_process()) {
    engine_.release();  // NOLINT: its threads, which an end would wait for, are not in this process
    return;
  }
  const nb::gil_scoped_release released;
  engine_.reset();
}

nb::object LocalPolicy::infer(const nb::dict& given, const nb::dict& additions,
                              std::optional<int64_t> steps) {
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
    const std::unique_lock turn = turns_.take(poll);
    all = engine_->infer_batch(rows);
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

nb::dict LocalPolicy::metadata() const {
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

ServedByOthers::ServedByOthers(const std::string& url, const std::string& api_key,
                               double timeout_s) {
  const nb::gil_scoped_release released;
  client_ = std::make_unique<PolicyClient>(
      url,
      PolicyClient::Options{.api_key = api_key, .timeout_s = timeout_s, .poll = check_signals});
}

ServedByOthers::~ServedByOthers() { close(); }

void ServedByOthers::close() {
  if (!turns_.is_own_process()) {
    client_.release();  // NOLINT: an end would close the parent's connection
    return;
  }
  const nb::gil_scoped_release released;
  client_.reset();
}

nb::object ServedByOthers::infer(const nb::dict& given, const nb::dict& additions) {
  const Message message(given, additions);
  const std::function<void()> poll = poll_signals();
  PolicyClient::Replies replies;
  {
    const nb::gil_scoped_release released;
    const std::unique_lock turn = turns_.take(poll);
    ensure(client_ != nullptr, Fault::network, "this connection was closed: call connect() again");
    std::string request;
    msgpack::Writer(request).value(message.map());
    replies = client_->ask_rows(request);
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

nb::dict ServedByOthers::metadata() const {
  ensure(client_ != nullptr, Fault::network, "this connection was closed: call connect() again");
  nb::dict out;
  greeting_fields(client_->policy(), ToDict{out});
  return out;
}

}  // namespace tendon::python
