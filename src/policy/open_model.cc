#include "policy/open_model.h"

#include <array>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/synthetic.h"
#include "model/config_file.h"
#include "policy/checkpoint_folder.h"
#include "policy/converted_file.h"
#include "tensor/check.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;

// What the command line names is the command line's fault, whatever is wrong with it.
nlohmann::json given_json(const std::string& path) {
  try {
    return read_json(path);
  } catch (const Error& error) {
    throw Error(Fault::usage, error.what());
  }
}

GivenConfig given_config(const std::string& config) {
  GivenConfig given;
  if (config.empty()) return given;
  if (!config.ends_with(".json") && !fs::exists(config)) {
    given.training = training_config(config);
    return given;
  }
  given.file = config;
  given.sizes = given_json(config);
  return given;
}

// Cameras are called as in the published checkpoints.
std::vector<std::string> slots(int64_t count) {
  static const std::array<std::string, 3> kNames = {"base_0_rgb", "left_wrist_0_rgb",
                                                    "right_wrist_0_rgb"};
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i)
    names.push_back(i < 3 ? kNames[static_cast<size_t>(i)] : fmt::format("camera_{}", i));
  return names;
}

std::unique_ptr<WeightSource> generate(const Config& config, const OpenOptions& o) {
  const bool narrow = o.precision == "bf16";
  return synthetic_weights(config.pi05(), {.seed = o.weights_seed,
                                           .dtype = narrow ? DType::bf16 : DType::f32,
                                           .vision_depth = config.vision.depth,
                                           .vlm_depth = config.vlm.depth,
                                           .expert_depth = config.expert.depth,
                                           .threads = o.threads});
}

OpenedModel open_synthetic(const Config& config, const OpenOptions& o) {
  OpenedModel m{.layout = "synthetic", .config = config, .weights = generate(config, o)};
  PolicySpec& s = m.spec;
  s.cameras = slots(config.cameras);
  s.state_dim = config.state_dim;
  s.action_dim = config.action_dim;
  s.action_names = numbered_actions(s.action_dim);
  s.prompt = {.style = PromptStyle::openpi,
              .state_in_prompt = config.pi05(),
              .tokens_max = config.max_token_len};
  m.notes.push_back("the weights are synthetic: actions mean nothing");
  m.notes.push_back("a synthetic model has no statistics: state and actions are not normalised");
  return m;
}

// Small enough for an action in a moment.
Config small_config(PolicyType type) {
  Config c = full_size(type);
  c.vision = {.image = 112, .patch = 14, .width = 96, .heads = 4, .mlp = 192, .depth = 4};
  c.vlm = {.width = 128, .mlp = 512, .heads = 4, .kv_heads = 1, .head_dim = 32, .depth = 4};
  c.expert = {.width = 64, .mlp = 256, .heads = 4, .kv_heads = 1, .head_dim = 32, .depth = 4};
  c.vocab = 512;
  return c;
}

OpenedModel open_synthetic(const std::string& model, const OpenOptions& o,
                           const GivenConfig& given) {
  std::string kind = model.substr(std::string_view("synthetic:").size());
  const bool small = kind.ends_with("-small");
  if (small) kind.resize(kind.size() - std::string_view("-small").size());
  ensure(kind == "pi0" || kind == "pi05", Fault::usage,
         "'{}': expected synthetic:pi0 or synthetic:pi05, or either with -small", model);
  const PolicyType type = kind == "pi05" ? PolicyType::pi05 : PolicyType::pi0;
  Config config = small ? small_config(type) : full_size(type);
  if (given.training) {
    config.horizon = given.training->horizon;
    config.max_token_len = given.training->tokens_max;
    config.action_dim = given.training->action_dim;
  }
  if (!given.sizes.is_null()) config = read_config(given.sizes, given.file, config);
  OpenedModel m = open_synthetic(config, o);
  if (!o.robot.empty()) set_robot(m.spec, robot_named(o.robot));
  if (given.training) apply_training_config(m, *given.training);
  return m;
}

// The trained policies inside the library.
OpenedModel open_demo(const std::string& model, const OpenOptions& o, const GivenConfig& given) {
  ensure(o.config.empty() && given.sizes.is_null(), Fault::usage,
         "the demo is what it is; --config belongs to synthetic:pi0 or a checkpoint folder");
  OpenedModel m = open_folder(demo_folder(model), o, given);
  m.layout = "demo";
  return m;
}

}  // namespace

bool is_demo(const std::string& model) {
  return model == "demo" || model == "demo:pi0" || model == "demo:pi05";
}

std::string demo_folder(const std::string& model) {
  return model == "demo:pi05" ? "embedded:pi05" : "embedded:pi0";
}

std::string find_tokenizer(const std::string& model) {
  for (const char* name : {"tokenizer/tokenizer.json", "tokenizer/tokenizer.model",
                           "tokenizer.json", "tokenizer.model", "paligemma_tokenizer.model"})
    if (is_file(fs::path(model) / name)) return (fs::path(model) / name).string();
  return "";
}

namespace {

void add_tokenizer(OpenedModel& m, const std::string& model, const OpenOptions& o) {
  PolicySpec& s = m.spec;
  const bool generated = m.layout == "synthetic";
  m.tokenizer = o.tokenizer;
  if (m.tokenizer.empty() && !generated)
    m.tokenizer = find_tokenizer(is_demo(model) ? demo_folder(model) : model);
  if (!m.tokenizer.empty()) {
    s.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::open(m.tokenizer));
  } else if (generated) {
    s.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::of_bytes());
    m.tokenizer = "one token per byte";
    m.notes.push_back("no tokenizer was given: every byte of the prompt is one token");
  }
  if (generated && s.tokenizer->vocabulary() > m.config.vocab) {
    s.folded_vocab = m.config.vocab;
    m.notes.push_back(
        fmt::format("token ids are folded into the {} rows of the token table", m.config.vocab));
  }
}

}  // namespace

OpenedModel open_model(const std::string& model, const OpenOptions& options) {
  const GivenConfig given = given_config(options.config);
  OpenedModel m;
  if (is_demo(model)) {
    m = open_demo(model, options, given);
  } else if (model.starts_with("synthetic:")) {
    m = open_synthetic(model, options, given);
  } else if (fs::is_regular_file(model)) {
    m = open_converted(model, options);
  } else {
    ensure(fs::is_directory(model), Fault::checkpoint,
           "{} is no folder; MODEL is demo, demo:pi05, synthetic:pi0, synthetic:pi05, a checkpoint "
           "folder of lerobot or openpi, or a file of tendon convert",
           model);
    m = open_folder(model, options, given);
  }
  ensure(options.adapt_to_pi || m.spec.robot == Robot::aloha, Fault::usage,
         "--no-adapt-to-pi: only an ALOHA's joints are adapted, and the robot is {}; say --robot "
         "aloha or leave it out",
         name(m.spec.robot));
  if (!options.adapt_to_pi) m.spec.adapt_to_pi = false;
  check_spec(m.spec, m.config);
  if (options.default_prompt) m.spec.default_prompt = options.default_prompt;
  if (m.config.pi05() && options.state_in_prompt)
    m.spec.prompt.state_in_prompt = *options.state_in_prompt;
  ensure(m.config.pi05() || !options.state_in_prompt.value_or(false), Fault::usage,
         "--state-in-prompt: only pi0.5 reads the state from the prompt");
  if (options.pad_state_in_prompt) m.spec.prompt.padded_state = m.config.state_dim;
  if (m.layout != "converted" || !options.tokenizer.empty()) add_tokenizer(m, model, options);
  for (const std::string& name : m.unused)
    m.notes.push_back(fmt::format("tensor {} is not used by the model", name));
  if (m.spec.robot == Robot::aloha && m.spec.adapt_to_pi)
    m.notes.push_back(
        "joints 1, 2, 8 and 9 are flipped and grippers 6 and 13 go through ALOHA's linkage, in "
        "state and actions (openpi's adapt_to_pi); --no-adapt-to-pi leaves them as they are");
  for (const std::string& warning : m.warnings) m.notes.push_back("warning: " + warning);
  if (options.note)
    for (const std::string& note : m.notes) options.note(note);
  return m;
}

}  // namespace tendon
