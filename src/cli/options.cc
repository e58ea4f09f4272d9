#include <fmt/format.h>

#include "cli/verbs.h"

namespace tendon::cli {

void add_model_options(CLI::App& verb, std::string& model, OpenOptions& o) {
  verb.add_option("MODEL", model,
                  "demo, synthetic:pi0, synthetic:pi05, a checkpoint folder of lerobot or openpi, "
                  "or a file "
                  "of tendon convert")
      ->required();
  verb.add_option("--config", o.config,
                  "sizes as a JSON file, or an openpi training config such as pi05_droid");
  verb.add_option("--tokenizer", o.tokenizer,
                  "paligemma_tokenizer.model or tokenizer.json; default: beside the model");
  verb.add_option("--statistics", o.statistics,
                  "openpi's norm_stats.json instead of the model's own, or none");
  verb.add_option("--default-prompt", o.default_prompt, "for observations without one");
  verb.add_option("--robot", o.robot, "aloha, droid, libero or lerobot; default: from the model");
  verb.add_option("--asset", o.asset, "which assets/<id> of an openpi checkpoint");
  verb.add_option("--backend", o.backend, "cpu (default) or reference");
  verb.add_option("--precision", o.precision,
                  "f32, bf16 or int8; default: bf16 on cpu, f32 on reference");
  verb.add_option("--isa", o.isa, "cpu: instruction set; default: the best of this machine");
  verb.add_option("--threads", o.threads, "default: one per core; never changes a result");
  verb.add_flag("--state-in-prompt,!--no-state-in-prompt", o.state_in_prompt,
                "pi0.5: whether the state is written into the prompt");
  verb.add_option("--weights-seed", o.weights_seed, "seed of synthetic weights");
}

void add_version(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("version", "print the version");
  const auto json = std::make_shared<bool>(false);
  verb->add_flag("--json", *json, "as JSON");
  verb->callback([json] {
    if (*json) {
      std::string list;
      for (const std::string& b : backends()) list += (list.empty() ? "\"" : ", \"") + b + "\"";
      fmt::print("{{\"version\": \"{}\", \"backends\": [{}]}}\n", version(), list);
    } else {
      fmt::print("tendon {}\n", version());
    }
  });
}

}  // namespace tendon::cli
