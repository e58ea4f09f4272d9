// Observation in, action chunk out: the five calls of the engine in a row.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/pi0.h"
#include "policy/images.h"
#include "policy/prompt.h"
#include "policy/tokenizer.h"
#include "policy/transforms.h"
#include "tendon/types.h"

namespace tendon {

// How one model meets one robot: everything around the network, as data.
struct PolicySpec {
  // Whose form of requests a server reads: "aloha", "droid", "libero", or any other robot's.
  std::string robot = "lerobot";
  std::vector<std::string> slots;              // model's cameras in order
  std::map<std::string, std::string> cameras;  // robot's name -> slot; "": accepted, not used
  std::vector<std::string> required;           // robot's cameras that may not be absent
  Family resizer = Family::lerobot;
  bool dark_bars = false;  // around pictures that are not square: -3 as in lerobot 0.4, else -1
  TimeSequence sequence = TimeSequence::lerobot;
  PromptOptions prompt;
  std::optional<std::string> default_prompt;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::optional<int64_t> folded_vocab;      // tiny test models: ids >= V become 3 + id mod (V - 3)
  Transforms transforms = {Normalize{}};    // the last one is Normalize
  int64_t state_dim = 32, action_dim = 32;  // real ones, without padding
  // A state may have fewer values than state_dim, down to this: nobody told the robot's width, and
  // from there on the statistics are padding.
  std::optional<int64_t> state_dim_min;
  std::vector<std::string> action_names;
  std::vector<double> reset_pose;  // joints of one arm where an episode begins; may be empty

  Normalize& normalize() { return std::get<Normalize>(transforms.back()); }
  const Normalize& normalize() const { return std::get<Normalize>(transforms.back()); }
  int64_t narrowest_state() const { return state_dim_min.value_or(state_dim); }
};

// Throws Error(Fault::checkpoint) for policy spec that do not fit together or to the model,
// wherever they came from: sizes, statistics, limits of the prompt.
void check_spec(const PolicySpec& spec, const Config& config);

// 'top', 'left'
std::string quoted_names(const std::vector<std::string>& names);

// How many values a state may have: "7", or "4 to 32".
std::string state_dims(int64_t most, const std::optional<int64_t>& least);

// What the robot calls the cameras of the model, in the model's order.
std::vector<std::string> robot_cameras(const PolicySpec& spec);

class Policy {
 public:
  // `ops` must outlive the policy. Throws Error(Fault::checkpoint) when the tokenizer is missing or
  // knows more tokens than the model, and what check_spec() throws.
  Policy(Ops& ops, Model model, PolicySpec spec);

  // Throws Error(Fault::input) for a bad observation or previous chunk and Error(Fault::internal)
  // for actions that are not finite.
  Actions infer(const Observation& observation, const InferOptions& options = {});
  // See Engine::infer_batch.
  std::vector<Actions> infer_batch(std::span<const BatchRow> rows);

  // Normalised actions on their way from noise (t = 1) to what the policy gives (t = 0).
  struct Point {
    std::vector<float> noisy;  // [horizon, model action_dim]
    double t = 0;
  };
  // The network's velocity at each of them, in the same shape, over one prefix. Throws
  // Error(Fault::input) as infer() does, and for another size, for what is not finite and for t
  // outside of [0, 1].
  std::vector<std::vector<float>> velocities(const Observation& observation,
                                             std::span<const Point> points);

  // A chunk in the robot's units, [rows, action_dim of the robot] with at least one row, as the
  // network sees it: normalised at the observation's state, [horizon, model action_dim], its last
  // row repeated or what is too long cut off, as training does. Error(Fault::input) for another
  // number of values or values that are not finite.
  std::vector<float> to_model(const Observation& observation,
                              std::span<const double> actions) const;

  // What infer() passes to the network; the errors of infer() for a bad observation.
  Inputs inputs(const Observation& observation) {
    Prepared p;
    Inputs in;
    preprocess(observation, p, in);
    return in;
  }

  const Config& config() const { return model_.config; }
  const Model& model() const { return model_; }
  const PolicySpec& spec() const { return spec_; }
  Ops& ops() { return ops_; }

 private:
  class Meter;
  // What the answer to an observation takes from it, beside the network's inputs.
  struct Prepared {
    const Observation* observation = nullptr;
    std::vector<const std::pair<const std::string, Image>*> pictures;  // by slot; null: absent
    States states;
    PromptTokens tokens;
    std::vector<std::string> warnings;
    double pictures_ms = 0;
  };
  // What guidance pulls towards and how much, still on the host.
  struct Leftover {
    std::vector<float> target, weights;  // [horizon, action_dim]
    float max_weight = 0;
  };
  // One chunk to be drawn.
  struct Draw {
    size_t row = 0;          // of the call
    size_t observation = 0;  // of Call::observations
    const Schedule* steps = nullptr;
    std::vector<float> noise;
    std::optional<Leftover> left;
    // Draws of one kind are denoised together.
    auto kind() const { return std::tuple(steps, left.has_value(), left ? left->max_weight : 0); }
  };
  struct Call {
    std::vector<Prepared> observations;  // every one once
    std::vector<Inputs> inputs;          // of each of them
    std::vector<Draw> draws;             // one per row
    std::vector<KvCache> others;         // the first observation's is cache_
    std::vector<KvCache*> caches;        // of the sequences that run
    std::array<int64_t, 4> sizes{};      // of its graphs
    bool recorded = true;                // vision, prefill and denoise may be
    StageTimes times;
    StageWork work;
  };
  void answer(std::span<const BatchRow> rows, std::span<Actions> out);
  Call prepare(std::span<const BatchRow> rows);
  void add(const Observation& observation, size_t place, Call& call);
  void preprocess(const Observation& observation, Prepared& p, Inputs& in);
  void add_images(const Observation& observation, Prepared& p, Inputs& in);
  std::span<const double> robot_state(const Observation& observation) const;
  void to_robot(std::span<const float> normalized, const Prepared& p, std::span<double> to) const;
  std::vector<float> from_robot(std::span<const double> actions, const States& states) const;
  void postprocess(const Prepared& p, Actions& out) const;
  void add_quantiles(const Prepared& p, Actions& out) const;
  void draw_noise(const InferOptions& options, std::span<float> to) const;
  std::optional<Leftover> leftover(const InferOptions& options, const Prepared& p) const;
  const Schedule& schedule(const InferOptions& options);
  KvCache& cache_of(Call& call, size_t observation) {
    return observation == 0 ? cache_ : call.others[observation - 1];
  }
  void read_prefix(Call& call, Meter& meter);
  void denoise_together(Call& call, std::span<const Draw> draws, std::span<Actions> out);

  Ops& ops_;
  Model model_;
  PolicySpec spec_;
  PatchWriter patches_;
  KvCache cache_;
  std::vector<float> quantiles_;  // two normalised rows: 1 % and 99 % of the actions; or none
  std::map<std::pair<int64_t, TimeSequence>, Schedule> schedules_;
  // Memory for the next call.
  Call spare_;
  std::vector<float> values_;  // on their way to the backend or back
};

}  // namespace tendon
