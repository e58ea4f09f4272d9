#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tendon/embedded.h"
#include "tensor/check.h"

namespace tendon::cli {
namespace {

// Large models only: one line that is rewritten on a terminal, else one line per tenth.
void print_progress(const LoadProgress& p, int& shown) {
  constexpr double kGb = 1e9;
  const auto total = static_cast<double>(p.plan.weights), done = static_cast<double>(p.bytes);
  if (total < kGb / 2) return;
  if (p.bytes == 0) {
    fmt::print(stderr, "memory plan: weights {:.2f} GB, cache {:.2f} GB, activations {:.2f} GB\n",
               total / kGb, static_cast<double>(p.plan.kv_cache) / kGb,
               static_cast<double>(p.plan.activations) / kGb);
    shown = 0;
    return;
  }
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  const int step = static_cast<int>(done / total * (terminal ? 100 : 10));
  if (step <= shown) return;
  shown = step;
  const double rate = done / std::max(p.seconds, 1e-3);
  fmt::print(stderr, "{}loading {:.2f} of {:.2f} GB · {:.2f} GB/s · {:.0f} s left{}",
             terminal ? "\r" : "", done / kGb, total / kGb, rate / kGb,
             std::max(0.0, (total - done) / rate), terminal ? " " : "\n");
  std::fflush(stderr);
}

// --name and --no-name.
void add_choice(CLI::App& verb, const std::string& name, std::optional<bool>& to, const char* yes,
                const char* no) {
  verb.add_flag_callback(
      "--" + name, [&to] { to = true; }, yes);
  verb.add_flag_callback(
      "--no-" + name, [&to] { to = false; }, no);
}

struct VersionOptions {
  bool json = false;
};

void print_version(const VersionOptions& o) {
  const Json all{{"version", version()}, {"backends", backends()}, {"instruction_sets", isas()}};
  print_report(o.json, all, lines("tendon {version}", all));
}

}  // namespace

std::string printable(std::string_view text) {
  constexpr size_t kBytesMax = 4096;
  std::string out;
  for (const char c : text.substr(0, kBytesMax)) {
    const bool control = (c >= 0 && c < ' ' && c != '\n') || c == '\x7f';
    out += control ? fmt::format("\\x{:02x}", static_cast<unsigned>(c)) : std::string(1, c);
  }
  if (text.size() > kBytesMax) out += fmt::format(" ... ({} bytes)", text.size());
  return out;
}

void add_device_options(CLI::App& verb, OpenOptions& o) {
  verb.add_option("--device", o.device,
                  "ttnn: fake (a model of the device inside tendon), sim or chip; cuda: number of "
                  "the GPU");
  verb.add_option("--ttnn-python", o.ttnn_python,
                  "ttnn: interpreter of an environment with the ttnn package, on a machine with a "
                  "chip");
  verb.add_option("--ttnn-sim", o.ttnn_sim,
                  "ttnn: folder made by scripts/ttnn-sim: the TTNN library on a simulated "
                  "Wormhole");
  verb.add_option("--grid", o.ttnn.grid,
                  "ttnn, device fake: columns x rows of cores, such as 8x7; default 8x9");
  verb.add_option("--device-id", o.ttnn.device_id, "ttnn: the library's number of the chip");
}

void add_model_options(CLI::App& verb, std::string& model, OpenOptions& o) {
  verb.add_option(
          "MODEL", model,
          "demo, demo:pi05, synthetic:pi0, synthetic:pi05, a checkpoint folder of lerobot or "
          "openpi, or a file of tendon convert")
      ->required(model.empty());
  verb.add_option(
      "--config", o.config,
      "an openpi training config such as pi05_droid, or a JSON file: sizes, and the robot's "
      "cameras, units, relative actions and prompt (docs/robots.md)");
  verb.add_option("--tokenizer", o.tokenizer,
                  "paligemma_tokenizer.model or tokenizer.json; default: beside the model");
  verb.add_option("--statistics", o.statistics,
                  "openpi's norm_stats.json instead of the model's own, or none");
  verb.add_option("--default-prompt", o.default_prompt, "for observations without one");
  verb.add_option("--robot", o.robot, "aloha, droid, libero or lerobot; default: from the model");
  verb.add_option("--asset", o.asset, "which assets/<id> of an openpi checkpoint");
  verb.add_option("--base", o.base,
                  "where MODEL is a LoRA adapter: the checkpoint that it was trained on, which may "
                  "be the same folder");
  verb.add_option("--lora-scale", o.lora_scale,
                  "alpha / rank of a LoRA adapter; default: as adapter_config.json says; 0: the "
                  "weights without it");
  verb.add_option(
      "--backend", o.backend,
      "cpu (default), reference, ttnn, cuda, or auto: ttnn where its device is named, cuda "
      "where there is a GPU, else cpu");
  verb.add_option("--precision", o.precision,
                  "cpu: bf16 (default), f32, int8; reference: f32; ttnn: bf16 (default), bfp8, or "
                  "by module as in bf16,expert=bfp8; cuda: bf16 (default), f32");
  add_device_options(verb, o);
  verb.add_option("--fidelity", o.ttnn.fidelity,
                  "ttnn: lofi, hifi2, hifi3 or hifi4; default: hifi4, hifi2 for bfp8");
  verb.add_option("--memory", o.ttnn.memory,
                  "ttnn: where results of calls lie: dram, l1 while they fit, or auto (default): "
                  "those of norms in L1");
  verb.add_option("--on-device", o.ttnn.on_device,
                  "ttnn: what the device makes instead of the host: patches, times, or both as in "
                  "patches,times; default: neither");
  verb.add_option("--isa", o.isa, "cpu: instruction set; default: the fastest, by measurement");
  verb.add_option("--threads", o.threads, "default: one per core; never changes a result");
  // Not one flag with a negation: CLI11 sets an optional to false where neither is given.
  add_choice(verb, "state-in-prompt", o.state_in_prompt,
             "pi0.5: write the state into the prompt; default: as the model says",
             "pi0.5: keep the state out of the prompt");
  add_choice(verb, "pad-state", o.pad_state_in_prompt,
             "pi0.5 of lerobot 0.4: pad the state before it is written into the prompt; default: "
             "as the files tell",
             "pi0.5 of lerobot 0.5 or later");
  add_choice(verb, "dark-bars", o.dark_bars,
             "lerobot 0.4: bars of -3 around pictures that are not square; default: as the files "
             "tell",
             "bars of -1, as in lerobot 0.5 or later");
  verb.add_flag_callback(
      "--no-adapt-to-pi", [&o] { o.adapt_to_pi = false; },
      "ALOHA: leave joints and grippers as they are (openpi's adapt_to_pi=False)");
  verb.add_option("--max-memory", o.max_memory, "refuse models that need more, such as 8GB")
      ->transform(CLI::AsSizeValue(true));
  o.progress = [shown = -1](const LoadProgress& p) mutable { print_progress(p, shown); };
  // Some verbs open a model several times.
  o.note = [said = std::make_shared<std::set<std::string>>()](const std::string& note) {
    if (said->insert(note).second)
      fmt::print(stderr, "{}{}\n", note.starts_with("warning: ") ? "" : "note: ", printable(note));
  };
  verb.add_option("--weights-seed", o.weights_seed, "seed of synthetic weights");
}

std::string read_key(const std::string& path) {
  std::ifstream file(path);
  std::string key;
  std::getline(file, key);
  ensure(!key.empty(), Fault::usage, "--api-key-file {}: no key in the first line", path);
  return key;
}

void add_observation_options(CLI::App& verb, GivenObservation& given) {
  verb.add_option("--image", given.images, "NAME=FILE (PNG, JPEG or PPM); once per camera");
  verb.add_option("--prompt", given.prompt, "what the robot shall do");
  verb.add_option("--state", given.state, "numbers, or a .json, .npy or text file");
}

Observation observe(const std::string& model, const GivenObservation& given, const Engine& engine,
                    bool fill) {
  const std::optional<Observation> own = observation_for(model, engine, fill);
  Observation observation;
  if (own && given.images.empty()) observation = *own;
  for (const std::string& text : given.images) {
    const size_t equals = text.find('=');
    ensure(equals != std::string::npos && equals > 0, Fault::usage,
           "--image {}: expected NAME=FILE", text);
    observation.images[text.substr(0, equals)] = read_image(text.substr(equals + 1));
  }
  if (!given.state.empty()) observation.state = read_numbers(given.state, "--state");
  if (own && given.state.empty()) observation.state = own->state;
  if (given.prompt) observation.prompt = given.prompt;
  if (fill && !observation.prompt) observation.prompt = own->prompt;
  return observation;
}

void add_version(CLI::App& app) {
  add_verb<VersionOptions>(app, "version", "print the version", print_version);
}

}  // namespace tendon::cli
