// tendon replay: recorded requests run again and compared.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "cli/report.h"
#include "cli/verbs.h"
#include "client/websocket_client.h"
#include "client/wire_fields.h"
#include "serve/recording.h"
#include "serve/request_handler.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

struct ReplayOptions {
  std::string folder, model, url, dialect = "openpi";
  OpenOptions open;
  RequestOptions answers;
  double tolerance = -1;
  bool json = false;
};

struct Result {
  int64_t compared = 0, other_errors = 0, equal = 0;
  std::vector<double> delta_max;  // per action dimension
  std::vector<double> recorded_ms, replayed_ms;
};

// Answers a recorded request again.
using Ask = std::function<Answer(const Record& request)>;

Ask in_process(const ServedPolicy& policy, const RequestOptions& options) {
  const auto metrics = std::make_shared<Metrics>();
  const auto answerer =
      std::make_shared<RequestHandler>(policy, options, *metrics, [](const std::string&) {});
  const auto sessions = std::make_shared<std::map<uint64_t, std::shared_ptr<Session>>>();
  return [metrics, answerer, sessions](const Record& request) {
    std::shared_ptr<Session>& session = (*sessions)[request.connection];
    if (!session) {
      session = std::make_shared<Session>();
      session->id = request.connection;
    }
    return answerer->answer({session, request.message, Clock::now(), request.seed});
  };
}

// The request with the seed that it was answered with, where it fits into a short map without one.
Bytes with_seed(const Record& request) {
  Bytes message = request.message;
  const bool short_map = !message.empty() && message[0] >= 0x80 && message[0] < 0x8f;
  if (!short_map || msgpack::decode(message).find("seed")) return message;
  std::string more;
  msgpack::Writer to(more);
  to.text("seed");
  to.integer(static_cast<int64_t>(request.seed));
  ++message[0];
  message.insert(message.end(), more.begin(), more.end());
  return message;
}

Ask at_server(const std::string& url) {
  const auto clients = std::make_shared<std::map<uint64_t, WebSocketClient>>();
  return [clients, url](const Record& request) {
    auto found = clients->find(request.connection);
    if (found == clients->end()) {
      found = clients->emplace(request.connection, WebSocketClient(url, {.timeout_s = 600})).first;
      found->second.receive();  // the greeting
    }
    found->second.send(with_seed(request));
    const WebSocketClient::Message reply = found->second.receive();
    return Answer{.message = std::string(reply.bytes.begin(), reply.bytes.end()),
                  .text = reply.text};
  };
}

// RoboArena's replies do not tell.
std::optional<double> infer_ms(const RemoteActions& reply) {
  const auto found = reply.server_timing.find("infer_ms");
  return found == reply.server_timing.end() ? std::nullopt : std::optional(found->second);
}

void compare(const RemoteActions& before, const RemoteActions& now, Result& result) {
  ensure(before.values.size() == now.values.size() && before.dim == now.dim, Fault::input,
         "the recorded chunk has {} values, this model's has {}", before.values.size(),
         now.values.size());
  result.delta_max.resize(static_cast<size_t>(before.dim), 0.0);
  for (size_t i = 0; i < before.values.size(); ++i) {
    double& largest = result.delta_max[i % static_cast<size_t>(before.dim)];
    largest = std::max(largest, std::abs(before.values[i] - now.values[i]));
  }
  result.equal += before.values == now.values ? 1 : 0;
}

void compare(const Record& recorded, const Answer& again, double took_ms, Result& result) {
  const bool was_error = recorded.kind == RecordKind::text_error;
  if (was_error || again.text) {
    ++result.compared;
    if (was_error != again.text) ++result.other_errors;
    return;
  }
  const std::vector<RemoteActions> before = read_replies(msgpack::decode(recorded.message)).rows;
  const std::vector<RemoteActions> now =
      read_replies(msgpack::decode(bytes_of(again.message))).rows;
  ensure(before.size() == now.size(), Fault::input,
         "the recorded answer has {} chunks, this one {}", before.size(), now.size());
  for (size_t i = 0; i < before.size(); ++i) compare(before[i], now[i], result);
  result.compared += std::ssize(before);
  result.recorded_ms.push_back(infer_ms(before[0]).value_or(0));
  result.replayed_ms.push_back(infer_ms(now[0]).value_or(took_ms));
}

// `fingerprint`: of the model; "" of a server.
void replay_file(const std::filesystem::path& path, const Ask& ask, const std::string& fingerprint,
                 Result& result) {
  RecordingReader reader(path);
  if (!fingerprint.empty() && reader.model_hash() != fingerprint)
    fmt::print(stderr, "note: {} was recorded with another model, backend or precision\n",
               path.filename().string());
  std::map<uint64_t, Record> asked;  // by connection
  while (std::optional<Record> record = reader.next()) {
    if (record->kind == RecordKind::request) {
      asked[record->connection] = std::move(*record);
      continue;
    }
    const auto request = asked.find(record->connection);
    if (request == asked.end()) continue;
    const Clock::time_point begin = Clock::now();
    const Answer again = ask(request->second);
    compare(*record, again, ms_between(begin, Clock::now()), result);
    asked.erase(request);
  }
  if (!reader.warning().empty())
    fmt::print(stderr, "warning: {}: {}\n", path.filename().string(), reader.warning());
}

Json to_json(const Result& r) {
  return {{"requests", r.compared},
          {"equal", r.equal},
          {"other_errors", r.other_errors},
          {"delta_max", r.delta_max},
          {"recorded_infer_ms", p50_p90_p99(r.recorded_ms)},
          {"replayed_infer_ms", p50_p90_p99(r.replayed_ms)}};
}

std::string replay_text(const Json& json, const std::vector<std::string>& names) {
  const Json& deltas = json.at("delta_max");
  Json actions = Json::array();
  for (size_t d = 0; d < deltas.size(); ++d)
    actions.push_back(
        {{"action", d < names.size() ? names[d] : fmt::format("{}", d)}, {"delta", deltas[d]}});
  return table("action {action} | max |delta| {delta:.3g}", actions) +
         lines(
             "{requests} requests, {equal} chunks equal in every bit, {other_errors} where only "
             "one side is an error\n"
             "infer_ms p50/p90/p99: recorded {recorded_infer_ms/0:.1f}/{recorded_infer_ms/1:.1f}/"
             "{recorded_infer_ms/2:.1f}, replayed {replayed_infer_ms/0:.1f}/"
             "{replayed_infer_ms/1:.1f}/{replayed_infer_ms/2:.1f}",
             json);
}

void replay(ReplayOptions g) {
  ensure(g.url.empty() != g.model.empty(), Fault::usage,
         "name either the MODEL that shall answer again, or a server with --url ws://...");
  if (g.dialect == "roboarena") g.answers.dialect = Dialect::roboarena;
  const std::vector<std::filesystem::path> files = recordings_in(g.folder);
  ensure(!files.empty(), Fault::input, "{} holds no recording of `tendon serve --record`",
         g.folder);
  const ServedPolicy policy = g.url.empty() ? open_served(g.model, g.open) : ServedPolicy();
  const Ask ask = g.url.empty() ? in_process(policy, g.answers) : at_server(g.url);
  Result result;
  for (const std::filesystem::path& file : files)
    replay_file(file, ask, policy.card.fingerprint, result);
  const Json json = to_json(result);
  print_report(g.json, json, replay_text(json, policy.card.action_names));
  const double worst = result.delta_max.empty() ? 0 : *std::ranges::max_element(result.delta_max);
  ensure(g.tolerance < 0 || (worst <= g.tolerance && result.other_errors == 0), Fault::verdict,
         "max |delta| {:.3g} is beyond --tolerance {}, or errors differ", worst, g.tolerance);
}

}  // namespace

void add_replay(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("replay", "recorded requests run again and compared");
  const auto g = std::make_shared<ReplayOptions>();
  verb->add_option("DIR", g->folder, "what `tendon serve --record DIR` wrote")->required();
  add_model_options(*verb, g->model, g->open);
  verb->get_option("MODEL")->required(false);
  verb->add_option("--url", g->url, "ask a running server instead: ws://host:port");
  verb->add_option("--dialect", g->dialect, "openpi (default) or roboarena")
      ->check(CLI::IsMember({"openpi", "roboarena"}));
  verb->add_flag("--rtc", g->answers.rtc, "as the server had it");
  verb->add_option("--control-hz", g->answers.control_hz, "as the server had it");
  verb->add_option("--tolerance", g->tolerance, "exit code 1 where an action differs by more");
  verb->add_flag("--json", g->json, "one JSON object on standard output");
  verb->callback([g] { replay(*g); });
}

}  // namespace tendon::cli
