#include "policy/open_model.h"

#include <array>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/synthetic.h"
#include "policy/checkpoint_folder.h"
#include "policy/converted_file.h"
#include "tensor/check.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<WeightSource> generate(const Config& config, const OpenOptions& o) {
  const bool narrow = o.precision == "bf16";
  return synthetic_weights(config.pi05(), {.seed = o.weights_seed,
                                           .dtype = narrow ? DType::bf16 : DType::f32,
                                           .vision_depth = config.vision.depth,
                                           .vlm_depth = config.vlm.depth,
                                           .expert_depth = config.expert.depth,
                                           .threads = o.threads});
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

OpenedModel open_synthetic(const std::string& model, const OpenOptions& o) {
  std::string kind = model.substr(std::string_view("synthetic:").size());
  const bool small = kind.ends_with("-small");
  if (small) kind.resize(kind.size() - std::string_view("-small").size());
  ensure(kind == "pi0" || kind == "pi05", Fault::usage,
         "'{}': expected synthetic:pi0 or synthetic:pi05, or either with -small", model);
  const PolicyType type = kind == "pi05" ? PolicyType::pi05 : PolicyType::pi0;
  Config config = small ? small_config(type) : full_size(type);
  const std::vector<Description> told = descriptions("", o);
  describe_sizes(config, told);
  OpenedModel m{.layout = "synthetic", .config = config, .weights = generate(config, o)};
  m.spec = {.slots = camera_slots(config.cameras),
            .prompt = {.style = Family::openpi,
                       .state_in_prompt = config.pi05(),
                       .tokens_max = config.max_token_len},
            .state_dim = config.state_dim,
            .action_dim = config.action_dim};
  for (const std::string& slot : m.spec.slots) m.spec.cameras[slot] = slot;
  describe_robot(m.spec, told);
  m.notes.push_back("the weights are synthetic: actions mean nothing");
  m.notes.push_back("a synthetic model has no statistics: state and actions are not normalised");
  return m;
}

// The trained policies inside the library.
OpenedModel open_demo(const std::string& model, const OpenOptions& o) {
  ensure(o.config.empty(), Fault::usage,
         "the demo is what it is; --config belongs to synthetic:pi0 or a checkpoint folder");
  OpenedModel m = open_folder(demo_folder(model), o);
  m.layout = "demo";
  return m;
}

void add_tokenizer(OpenedModel& m, const std::string& model, const OpenOptions& o) {
  PolicySpec& s = m.spec;
  const bool generated = m.layout == "synthetic";
  m.tokenizer = o.tokenizer;
  if (m.tokenizer.empty() && !generated)
    m.tokenizer = find_tokenizer(is_demo(model) ? demo_folder(model) : model);
  if (m.tokenizer.empty() && !o.base.empty()) m.tokenizer = find_tokenizer(base_folder(o).string());
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

OpenedModel open_layout(const std::string& model, const OpenOptions& options) {
  ensure((options.base.empty() && !options.lora_scale) || fs::is_directory(model), Fault::usage,
         "--base and --lora-scale are for checkpoint folders with a LoRA adapter, which {} is not",
         model);
  if (is_demo(model)) return open_demo(model, options);
  if (model.starts_with("synthetic:")) return open_synthetic(model, options);
  if (fs::is_regular_file(model)) return open_converted(model, options);
  ensure(fs::is_directory(model), Fault::checkpoint,
         "{} is no folder; MODEL is demo, demo:pi05, synthetic:pi0, synthetic:pi05, a checkpoint "
         "folder of lerobot or openpi, or a file of tendon convert",
         model);
  return open_folder(model, options);
}

void tell_of_adapter(const AdapterSummary& adapter, const OpenOptions& o, OpenedModel& m) {
  constexpr double kEnough = 0.9;
  m.notes.push_back(adapter.text());
  const bool narrow = o.precision == "bf16" || (o.precision.empty() && o.backend != "reference");
  if (narrow && adapter.kept_in_bf16 < kEnough)
    m.warnings.push_back(fmt::format(
        "rounding to bf16, in which the base is stored, keeps about {:.0f} % of what the adapter "
        "of {} changes; --precision f32 keeps all",
        100 * adapter.kept_in_bf16, adapter.file));
}

// What the command line says otherwise than the checkpoint.
void apply_options(PolicySpec& s, const Config& config, const OpenOptions& o) {
  ensure(o.adapt_to_pi || s.robot == "aloha", Fault::usage,
         "--no-adapt-to-pi: only an ALOHA's joints are adapted, and the robot is {}; say --robot "
         "aloha or leave it out",
         s.robot);
  if (!o.adapt_to_pi) {
    std::erase_if(s.transforms, [](const Transform& t) { return std::get_if<AlohaJoints>(&t); });
    s.reset_pose.clear();
  }
  if (o.default_prompt) s.default_prompt = o.default_prompt;
  if (config.pi05() && o.state_in_prompt) s.prompt.state_in_prompt = *o.state_in_prompt;
  ensure(config.pi05() || !o.state_in_prompt.value_or(false), Fault::usage,
         "--state-in-prompt: only pi0.5 reads the state from the prompt");
  if (o.pad_state_in_prompt) {
    s.prompt.padded_state.reset();
    if (*o.pad_state_in_prompt) s.prompt.padded_state = config.state_dim;
  }
  s.dark_bars = o.dark_bars.value_or(s.dark_bars);
  ensure(!s.dark_bars || s.resizer == Family::lerobot, Fault::usage,
         "--dark-bars: only lerobot 0.4 had them, and pictures are resized as openpi does");
}

}  // namespace

std::vector<std::string> camera_slots(int64_t count) {
  static const std::array<std::string, 3> kNames = {"base_0_rgb", "left_wrist_0_rgb",
                                                    "right_wrist_0_rgb"};
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i)
    names.push_back(i < 3 ? kNames[static_cast<size_t>(i)] : fmt::format("camera_{}", i));
  return names;
}

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

OpenedModel open_model(const std::string& model, const OpenOptions& options) {
  OpenedModel m = open_layout(model, options);
  if (const AdapterSummary* adapter = m.weights->adapter()) tell_of_adapter(*adapter, options, m);
  PolicySpec& s = m.spec;
  if (s.action_names.empty())
    for (int64_t d = 0; d < s.action_dim; ++d)
      s.action_names.push_back(fmt::format("action_{}", d));
  apply_options(s, m.config, options);
  check_spec(s, m.config);
  if (m.layout != "converted" || !options.tokenizer.empty()) add_tokenizer(m, model, options);
  for (const std::string& name : m.unused)
    m.notes.push_back(fmt::format("tensor {} is not used by the model", name));
  if (find<AlohaJoints>(s.transforms))
    m.notes.push_back(
        "joints 1, 2, 8 and 9 are flipped and grippers 6 and 13 go through ALOHA's linkage, in "
        "state and actions (openpi's adapt_to_pi); --no-adapt-to-pi leaves them as they are");
  for (const std::string& warning : m.warnings) m.notes.push_back("warning: " + warning);
  if (options.note)
    for (const std::string& note : m.notes) options.note(note);
  return m;
}

}  // namespace tendon
