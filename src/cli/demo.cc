// tendon demo: a policy in closed loop with the table inside the library, in this process or behind
// a server.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "demo/film.h"
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
  named.policy = [client](const Observation& now, const std::optional<PreviousChunk>& left,
                          uint64_t seed) {
    RemoteOptions options;
    options.seed = seed;
    if (left) {
      options.prev_chunk = {.rows = left->rows, .dim = left->dim, .values = left->actions};
      options.inference_delay = left->delay;
      options.execution_horizon = left->execution_horizon;
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
    t.task = task;
    t.verb = task.verb;
    t.pairs = held_out(task.target) ? Pairs::held_out : Pairs::seen;
  }
  return all;
}

// Draws the episode on the terminal, ten steps a second, as on the table.
std::function<void(const Record&)> live_view(bool colours, const std::string& prompt,
                                             const std::string& status) {
  const auto view = std::make_shared<TerminalView>(stderr, colours);
  const auto next = std::make_shared<std::chrono::steady_clock::time_point>();
  return [view, prompt, status, next](const Record& record) {
    view->show(record, prompt, status);
    const auto now = std::chrono::steady_clock::now();
    *next = std::max(*next + std::chrono::milliseconds(100), now);
    std::this_thread::sleep_until(*next);
  };
}

std::vector<Judged> judge(const DemoOptions& o, const demo::Policy& policy, bool live) {
  std::vector<Judged> all;
  int successes = 0;
  for (const Trial& trial : wanted(o)) {
    const Episode episode = trial.episode();
    LoopOptions loop = o.loop;
    loop.prompt = (o.wrong_prompt ? other_task(episode) : episode.task).prompt();
    const std::string status = fmt::format("solved {} of {}", successes, all.size());
    if (live) loop.watch = live_view(o.no_colour.empty(), loop.prompt, status);
    const Record r = run_episode(episode, policy, loop, trial.seed);
    loop.watch = nullptr;  // the view ends: what follows is written below it
    successes += r.solved;
    if (!o.quiet && !o.json)
      fmt::print(stderr, "{:6}  {}  {} {:.1f} s, {} chunks\n", trial.seed, loop.prompt,
                 r.solved ? "solved in" : "NOT solved within", r.steps() * kStep, r.chunks);
    all.push_back({trial, r, loop.prompt});
  }
  return all;
}

// Of the episodes of a kind, or of all.
Json score_json(const std::vector<Judged>& all, const std::string& kind = "") {
  Rate rate;
  double seconds = 0, jump = 0;  // until solved, over the solved ones; largest
  for (const Judged& j : all) {
    if (!kind.empty() && kind_of(j.trial) != kind) continue;
    ++rate.episodes;
    rate.successes += j.record.solved;
    if (j.record.solved) seconds += j.record.steps() * kStep;
    jump += j.record.largest_jump;
  }
  return {{"episodes", rate.episodes},
          {"solved", rate.successes},
          {"success_rate", rate.rate()},
          {"interval", {rate.low(), rate.high()}},
          {"mean_seconds", seconds / std::max(1, rate.successes)},
          {"mean_max_step", jump / rate.episodes}};
}

Json to_json(const DemoOptions& o, const std::string& policy, const std::vector<Judged>& all) {
  Json json = score_json(all);
  json["policy"] = policy;
  json["latency_ms"] = o.latency_ms;
  json["real_time_chunking"] = o.loop.guided;
  for (const Judged& j : all) {
    const std::string kind = kind_of(j.trial);
    if (Json& score = json["tasks"][kind]; score.is_null()) score = score_json(all, kind);
    json["rows"].push_back({{"seed", j.trial.seed},
                            {"task", kind},
                            {"goal", j.record.episode.task.prompt()},
                            {"prompt", j.prompt},
                            {"solved", j.record.solved},
                            {"steps", j.record.steps()},
                            {"chunks", j.record.chunks},
                            {"max_step", j.record.largest_jump}});
  }
  return json;
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
  const Judged& last = all.back();
  if (!o.gif.empty()) write_file(o.gif, film_gif(last.record, last.prompt));
  if (!o.svg.empty()) write_file(o.svg, sketch_svg(last.record, last.prompt));
  const Json json = to_json(o, named.name, all);
  print_report(
      o.json, json,
      table("task {} | solved {solved} of {episodes:d} | rate {success_rate:.1%} | 95 % interval "
            "{interval/0:.1%} to {interval/1:.1%} | time {mean_seconds:.1f} s | max step "
            "{mean_max_step:.3f}",
            json.at("tasks")));
  const double rate = json.at("success_rate");
  ensure(!o.at_least || rate >= *o.at_least, Fault::verdict,
         "solved {:.1f} % of {} episodes, --at-least {:.1f} %", 100 * rate, all.size(),
         100 * o.at_least.value_or(0));
}

void add_experiments(CLI::App& verb, DemoOptions& o) {
  for (CLI::Option* option :
       {verb.add_option("--latency", o.latency_ms,
                        "simulated milliseconds from an observation to its actions, rounded up to "
                        "steps of 100"),
        verb.add_flag("--rtc", o.loop.guided,
                      "real-time chunking: guide each chunk by what is left of the one before"),
        verb.add_option("--rtc-rows", o.loop.guided_rows,
                        "rows that are guided beyond those that the latency takes; default 1"),
        verb.add_option("--rows", o.loop.rows, "actions of a chunk that are executed; default 5"),
        verb.add_flag("--wrong-prompt", o.wrong_prompt,
                      "name another object than the one that counts"),
        verb.add_flag("--blank-images", o.loop.blank_images, "black pictures"),
        verb.add_flag("--zero-state", o.loop.zero_state, "state 0, 0, 0")})
    option->group("Experiments");
}

}  // namespace

void add_demo(CLI::App& app) {
  const auto [verb, o] = add_verb<DemoOptions>(
      app, "demo", "a policy in closed loop: reach for objects on a table, push them to its edges",
      run);
  verb.add_option("--prompt", o.prompt,
                  "'reach the red disc', 'push the blue square to the left edge'; default: a new "
                  "task in each episode");
  verb.add_option("--episodes", o.episodes, "default 4")->check(CLI::Range(1, 100000));
  verb.add_option("--seed", o.seed, "of the first episode; the next ones count up");
  verb.add_option("--verb", o.verb, "reach, push or both (default)")
      ->check(CLI::IsMember({"reach", "push", "both"}));
  verb.add_option("--pairs", o.pairs,
                  "colours and shapes: seen together in training, unseen, or both (default)")
      ->check(CLI::IsMember({"seen", "unseen", "both"}));
  verb.add_option("--url", o.url, "ask a running server, such as ws://localhost:8000");
  verb.add_option("--api-key-file", o.key_file, "the server's key");
  verb.add_option("--gif", o.gif, "write the last episode to FILE.gif");
  verb.add_option("--svg", o.svg, "write the last episode to FILE.svg");
  verb.add_option("--at-least", o.at_least, "exit code 1 below this rate of success")
      ->check(CLI::Range(0.0, 1.0));
  verb.add_option("--no-color", o.no_colour, "plain letters; also by the variable NO_COLOR")
      ->envname("NO_COLOR")
      ->expected(0, 1)
      ->default_str("1");
  verb.add_flag("--quiet", o.quiet, "the table only");
  add_experiments(verb, o);
}

}  // namespace tendon::cli
