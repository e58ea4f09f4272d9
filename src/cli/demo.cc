// tendon demo: a policy in closed loop with the table inside the library, in this process or behind
// a server.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/chunk_files.h"
#include "cli/verbs.h"
#include "demo/film.h"
#include "demo/sketch.h"
#include "demo/terminal.h"
#include "tendon/client.h"
#include "tendon/table_policy.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

using namespace demo;

struct DemoOptions {
  std::string model = "demo", url, key_file, prompt, verb = "both", pairs = "both", gif, svg;
  OpenOptions open;
  int episodes = 4;
  uint64_t seed = 0;
  double latency_ms = 0;
  LoopOptions loop;
  bool wrong_prompt = false, json = false, quiet = false;
  std::string no_colour;  // NO_COLOR, whatever it says
  std::optional<double> at_least;
};

struct Judged {
  Trial trial;
  Record record;
  std::string prompt;
};

struct Named {
  std::string name;  // "demo · cpu · avx512bf16, bf16 products"
  demo::Policy policy;
};

Named local(const DemoOptions& o) {
  const auto engine = std::make_shared<Engine>(Engine::open(o.model, o.open));
  return {fmt::format("{} · {} · {}", o.model, engine->backend(), engine->method()),
          table_policy(engine)};
}

Named remote(const DemoOptions& o) {
  PolicyClient::Options connection;
  if (!o.key_file.empty()) connection.api_key = read_key(o.key_file);
  const auto client = std::make_shared<PolicyClient>(o.url, connection);
  Named named{fmt::format("{} at {}", client->policy().model, o.url), {}};
  named.policy = [client](const Observation& now, const LeftOver& left, uint64_t seed) {
    RemoteOptions options;
    options.seed = seed;
    if (left.rows > 0) {
      options.prev_chunk = {.rows = left.rows, .dim = 3, .values = left.values};
      options.inference_delay = left.delay;
      options.execution_horizon = left.guided;
    }
    return client->infer(now, "lerobot", options).values;
  };
  return named;
}

std::vector<Trial> wanted(const DemoOptions& o) {
  std::vector<Verb> verbs;
  if (o.verb != "push") verbs.push_back(Verb::reach);
  if (o.verb != "reach") verbs.push_back(Verb::push);
  std::vector<Pairs> pairs;
  if (o.pairs != "unseen") pairs.push_back(Pairs::seen);
  if (o.pairs != "seen") pairs.push_back(Pairs::held_out);
  std::vector<Trial> all = trials(o.episodes, o.seed, verbs, pairs);
  if (o.prompt.empty()) return all;
  const Task task = parse_task(o.prompt);
  for (Trial& t : all) {
    t.verb = task.verb;
    t.pairs = held_out(task.target) ? Pairs::held_out : Pairs::seen;
  }
  return all;
}

Episode begin(const Trial& trial, const DemoOptions& o) {
  if (o.prompt.empty()) return trial.episode();
  Random random(trial.seed);
  return new_episode(random, parse_task(o.prompt));
}

// Ten steps a second, as on the table.
LoopOptions shown_live(LoopOptions loop, TerminalView& view, const std::string& prompt,
                       const std::string& status) {
  auto next = std::make_shared<std::chrono::steady_clock::time_point>();
  loop.watch = [&view, prompt, status, next](const Record& record) {
    view.show(record, prompt, status);
    const auto now = std::chrono::steady_clock::now();
    *next = std::max(*next + std::chrono::milliseconds(100), now);
    std::this_thread::sleep_until(*next);
  };
  return loop;
}

std::vector<Judged> judge(const DemoOptions& o, const demo::Policy& policy, bool live) {
  std::vector<Judged> all;
  int successes = 0;
  for (const Trial& trial : wanted(o)) {
    const Episode episode = begin(trial, o);
    LoopOptions loop = o.loop;
    if (o.wrong_prompt) loop.prompt = other_task(episode).prompt();
    const std::string prompt = loop.prompt.empty() ? episode.task.prompt() : loop.prompt;
    Judged judged{.trial = trial, .prompt = prompt};
    if (live) {
      TerminalView view(stderr, o.no_colour.empty());
      const std::string status = fmt::format("solved {} of {}", successes, all.size());
      judged.record =
          run_episode(episode, policy, shown_live(loop, view, prompt, status), trial.seed);
    } else {
      judged.record = run_episode(episode, policy, loop, trial.seed);
    }
    const Record& r = judged.record;
    successes += r.solved;
    if (!o.quiet && !o.json)
      fmt::print(stderr, "{:6}  {}  {} {:.1f} s, {} chunks\n", trial.seed, prompt,
                 r.solved ? "solved in" : "NOT solved within", r.steps() * kStep, r.chunks);
    all.push_back(std::move(judged));
  }
  return all;
}

struct Row {
  Rate rate;
  double seconds = 0, jump = 0;  // until solved, over the solved ones; largest
};

std::map<std::string, Row> by_kind(const std::vector<Judged>& all) {
  std::map<std::string, Row> rows;
  for (const Judged& j : all) {
    Row& row = rows[kind_of(j.trial)];
    ++row.rate.episodes;
    row.rate.successes += j.record.solved;
    if (j.record.solved) row.seconds += j.record.steps() * kStep;
    row.jump += j.record.largest_jump;
  }
  return rows;
}

void print_table(const std::vector<Judged>& all) {
  fmt::print("{:20} {:>9}  {:>8}  {:>16}  {:>7}  {:>9}\n", "task", "solved", "rate",
             "95 % interval", "time", "max step");
  for (const auto& [kind, row] : by_kind(all)) {
    const Rate& r = row.rate;
    fmt::print("{:20} {:>4}/{:<4}  {:6.1f} %  {:6.1f} to {:5.1f} %  {:5.1f} s  {:7.3f}\n", kind,
               r.successes, r.episodes, 100 * r.rate(), 100 * r.low(), 100 * r.high(),
               r.successes ? row.seconds / r.successes : 0, row.jump / r.episodes);
  }
}

Rate total(const std::vector<Judged>& all) {
  Rate rate;
  for (const Judged& j : all) {
    ++rate.episodes;
    rate.successes += j.record.solved;
  }
  return rate;
}

void print_json(const DemoOptions& o, const std::string& policy, const std::vector<Judged>& all) {
  const Rate rate = total(all);
  nlohmann::json json{{"policy", policy},
                      {"episodes", rate.episodes},
                      {"success_rate", rate.rate()},
                      {"interval", {rate.low(), rate.high()}},
                      {"latency_ms", o.latency_ms},
                      {"real_time_chunking", o.loop.guided},
                      {"tasks", nlohmann::json::object()},
                      {"rows", nlohmann::json::array()}};
  for (const auto& [kind, row] : by_kind(all))
    json["tasks"][kind] = {{"episodes", row.rate.episodes},
                           {"success_rate", row.rate.rate()},
                           {"interval", {row.rate.low(), row.rate.high()}},
                           {"mean_max_step", row.jump / row.rate.episodes}};
  for (const Judged& j : all)
    json["rows"].push_back({{"seed", j.trial.seed},
                            {"task", kind_of(j.trial)},
                            {"goal", j.record.episode.task.prompt()},
                            {"prompt", j.prompt},
                            {"solved", j.record.solved},
                            {"steps", j.record.steps()},
                            {"chunks", j.record.chunks},
                            {"max_step", j.record.largest_jump}});
  fmt::print("{}\n", json.dump());
}

void run(DemoOptions o) {
  ensure(o.url.empty() || o.model == "demo", Fault::usage,
         "--url asks a server, whose policy it is; MODEL {} would not be used", o.model);
  ensure(o.loop.rows >= 1 && o.latency_ms >= 0 && o.latency_ms <= 10000, Fault::usage,
         "--rows {} and --latency {}: expected 1 or more rows and 0 to 10000 ms", o.loop.rows,
         o.latency_ms);
  o.loop.delay = static_cast<int>(std::ceil(o.latency_ms / (1000 * kStep) - 1e-9));
  ensure(o.loop.delay < o.loop.rows, Fault::usage,
         "--latency {} is {} actions: give more than so many --rows", o.latency_ms, o.loop.delay);
  const bool live = !o.quiet && !o.json && ::isatty(STDERR_FILENO) != 0;
  const Named named = o.url.empty() ? local(o) : remote(o);
  if (!o.json) fmt::print(stderr, "{}\n", named.name);
  const std::vector<Judged> all = judge(o, named.policy, live);
  if (!all.empty()) {
    const Judged& last = all.back();
    if (!o.gif.empty()) write_file(o.gif, film_gif(last.record, last.prompt));
    if (!o.svg.empty()) write_file(o.svg, sketch_svg(last.record, last.prompt));
  }
  if (o.json)
    print_json(o, named.name, all);
  else
    print_table(all);
  const double rate = total(all).rate();
  ensure(!o.at_least || rate >= *o.at_least, Fault::verdict,
         "solved {:.1f} % of {} episodes, --at-least {:.1f} %", 100 * rate, all.size(),
         100 * o.at_least.value_or(0));
}

void add_experiments(CLI::App& verb, DemoOptions& o) {
  verb.add_option("--latency", o.latency_ms,
                  "simulated milliseconds from an observation to its actions, rounded up to steps "
                  "of 100")
      ->group("Experiments");
  verb.add_flag("--rtc", o.loop.guided,
                "real-time chunking: guide each chunk by what is left of the one before")
      ->group("Experiments");
  verb.add_option("--rtc-rows", o.loop.guided_rows,
                  "rows that are guided beyond those that the latency takes; default 1")
      ->group("Experiments");
  verb.add_option("--rows", o.loop.rows, "actions of a chunk that are executed; default 5")
      ->group("Experiments");
  verb.add_flag("--wrong-prompt", o.wrong_prompt, "name another object than the one that counts")
      ->group("Experiments");
  verb.add_flag("--blank-images", o.loop.blank_images, "black pictures")->group("Experiments");
  verb.add_flag("--zero-state", o.loop.zero_state, "state 0, 0, 0")->group("Experiments");
}

}  // namespace

void add_demo(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "demo", "a policy in closed loop: reach for objects on a table, push them to its edges");
  const auto o = std::make_shared<DemoOptions>();
  add_model_options(*verb, o->model, o->open);
  verb->add_option("--prompt", o->prompt,
                   "'reach the red disc', 'push the blue square to the left edge'; default: a new "
                   "task in each episode");
  verb->add_option("--episodes", o->episodes, "default 4")->check(CLI::Range(1, 100000));
  verb->add_option("--seed", o->seed, "of the first episode; the next ones count up");
  verb->add_option("--verb", o->verb, "reach, push or both (default)")
      ->check(CLI::IsMember({"reach", "push", "both"}));
  verb->add_option("--pairs", o->pairs,
                   "colours and shapes: seen together in training, unseen, or both (default)")
      ->check(CLI::IsMember({"seen", "unseen", "both"}));
  verb->add_option("--url", o->url, "ask a running server, such as ws://localhost:8000");
  verb->add_option("--api-key-file", o->key_file, "the server's key");
  verb->add_option("--gif", o->gif, "write the last episode to FILE.gif");
  verb->add_option("--svg", o->svg, "write the last episode to FILE.svg");
  verb->add_option("--at-least", o->at_least, "exit code 1 below this rate of success")
      ->check(CLI::Range(0.0, 1.0));
  verb->add_option("--no-color", o->no_colour, "plain letters; also by the variable NO_COLOR")
      ->envname("NO_COLOR")
      ->expected(0, 1)
      ->default_str("1");
  verb->add_flag("--quiet", o->quiet, "the table only");
  verb->add_flag("--json", o->json, "one JSON object on standard output");
  add_experiments(*verb, *o);
  verb->callback([o] { run(*o); });
}

}  // namespace tendon::cli
