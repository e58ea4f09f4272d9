#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>

#include "policy/processors.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "tensor/random.h"
#include "tensor/stop_watch.h"

namespace tendon {
namespace {

// What the ops did since the last lap.
class WorkMeter {
 public:
  explicit WorkMeter(const Coverage& coverage)
      : coverage_(coverage), flops_(coverage.flops), bytes_(coverage.bytes) {}
  void lap(int64_t& flops, int64_t& bytes) {
    flops = coverage_.flops - flops_;
    bytes = coverage_.bytes - bytes_;
    flops_ += flops;
    bytes_ += bytes;
  }

 private:
  const Coverage& coverage_;
  int64_t flops_, bytes_;
};

}  // namespace

Policy::Policy(Ops& ops, Model model, PolicySpec spec)
    : ops_(ops), model_(std::move(model)), spec_(std::move(spec)) {
  ensure(spec_.tokenizer != nullptr, Fault::checkpoint,
         "this model has no tokenizer; put paligemma_tokenizer.model or tokenizer.json beside it "
         "or name one with --tokenizer FILE");
  ensure(spec_.folded_vocab || spec_.tokenizer->vocabulary() <= model_.config.vocab,
         Fault::checkpoint, "the tokenizer knows {} tokens, the model's token table has {} rows",
         spec_.tokenizer->vocabulary(), model_.config.vocab);
  check_spec(spec_, model_.config);
  cache_ = make_cache(ops_, model_.config);
  schedule({});
  const Normalizer& action = spec_.normalize().action;
  if (!action.has_quantiles(spec_.action_dim)) return;
  for (const std::vector<double>* quantile : {&action.q01, &action.q99}) {
    std::vector<double> row(quantile->begin(), quantile->begin() + spec_.action_dim);
    action.renormalize(row);
    std::ranges::transform(row, std::back_inserter(quantiles_),
                           [](double v) { return static_cast<float>(v); });
    quantiles_.resize(quantiles_.size() +
                      static_cast<size_t>(model_.config.action_dim - spec_.action_dim));
  }
}

const Schedule& Policy::schedule(const InferOptions& options) {
  const int64_t steps = options.steps.value_or(model_.config.num_steps);
  const auto key = std::pair(steps, options.sequence.value_or(spec_.sequence));
  const auto found = schedules_.find(key);
  if (found != schedules_.end()) return found->second;
  return schedules_.emplace(key, make_schedule(ops_, model_, steps, key.second)).first->second;
}

std::vector<double> Policy::robot_state(const Observation& observation) const {
  std::vector<double> state = observation.state;
  ensure(std::ssize(state) >= spec_.narrowest_state() && std::ssize(state) <= spec_.state_dim,
         Fault::input, "the state has {} values, this model expects {}", state.size(),
         state_dims(spec_.state_dim, spec_.state_dim_min));
  for (size_t i = 0; i < state.size(); ++i)
    ensure(std::isfinite(state[i]), Fault::input, "state[{}] is {}, expected a finite number", i,
           state[i]);
  return state;
}

// Present cameras in the model's order, as one stack of patches; absent ones are left out.
void Policy::add_images(const Observation& observation, Prepared& p) {
  std::map<std::string, decltype(observation.images.begin())> by_slot;
  std::vector<std::string> extra;
  for (auto given = observation.images.begin(); given != observation.images.end(); ++given) {
    const std::string& key = given->first;
    const std::string own = camera_name(key);
    const auto known = spec_.cameras.find(own);
    const std::string slot = known == spec_.cameras.end() ? own : known->second;
    if (slot.empty()) continue;  // known to the robot, not used by the model
    if (std::ranges::find(spec_.slots, slot) == spec_.slots.end()) {
      extra.push_back(key);
      continue;
    }
    ensure(!by_slot.contains(slot), Fault::input, "two images for camera '{}'", slot);
    by_slot[slot] = given;
  }
  if (!extra.empty()) {  // a wrong name, unless the model sees all that it can see
    const std::vector<std::string> expected = robot_cameras(spec_);
    ensure(by_slot.size() >= expected.size(), Fault::input,
           "no camera is called '{}'; this model expects {}; nearest: '{}'", extra[0],
           quoted_names(expected), nearest(camera_name(extra[0]), expected));
    p.warnings.push_back(
        fmt::format("not used, the model has no such cameras: {}", quoted_names(extra)));
  }
  ensure(!by_slot.empty(), Fault::input, "no image given; this model expects {}",
         quoted_names(robot_cameras(spec_)));
  for (const std::string& camera : spec_.required)
    ensure(by_slot.contains(spec_.cameras.at(camera)), Fault::input,
           "the image of camera '{}' is missing; this robot needs it", camera);
  const VisionConfig& vision = model_.config.vision;
  const bool cut_later = ops_.takes_pictures();
  const PatchLayout layout{static_cast<int>(vision.image), static_cast<int>(vision.patch),
                           cut_later, spec_.dark_bars ? -3.f : -1.f};
  p.inputs.images = std::ssize(by_slot);
  std::vector<float> all(by_slot.size() * layout.values());
  std::span<float> rest = all;
  bool of_bytes = true;
  for (const std::string& slot : spec_.slots) {
    const auto found = by_slot.find(slot);
    if (found == by_slot.end()) {
      p.warnings.push_back(fmt::format("camera '{}' is absent and masked", slot));
      continue;
    }
    const auto& [key, image] = *found->second;
    write_patches(image, spec_.resizer, layout, fmt::format("camera '{}': the picture", key),
                  rest.first(layout.values()));
    rest = rest.subspan(layout.values());
    of_bytes &= keeps_bytes(image, spec_.resizer, layout.side);
  }
  const Pictures pictures{all, p.inputs.images, vision.image, vision.patch, of_bytes};
  p.inputs.patches = cut_later ? ops_.patches(pictures) : ops_.upload(all, pictures.patches());
}

Policy::Prepared Policy::preprocess(const Observation& observation) {
  Prepared p;
  p.states = state_to_model(spec_.transforms, robot_state(observation));
  const std::vector<double>& state = p.states.back();
  StopWatch watch;
  add_images(observation, p);
  p.pictures_ms = watch.lap_ms();
  const std::optional<std::string>& text =
      observation.prompt ? observation.prompt : spec_.default_prompt;
  ensure(text.has_value(), Fault::input, "a prompt is required: give --prompt TEXT");
  check_utf8(*text, "the prompt");
  ensure(!strip(*text).empty(), Fault::input,
         "the prompt is empty; say what the robot shall do, such as \"fold the towel\"");
  PromptTokens tokens = tokenize_prompt(*spec_.tokenizer, *text, state, spec_.prompt);
  if (tokens.untruncated > std::ssize(tokens.ids))
    p.warnings.push_back(fmt::format("the prompt has {} tokens and was cut to {}",
                                     tokens.untruncated, tokens.ids.size()));
  if (spec_.folded_vocab)
    for (int32_t& id : tokens.ids)
      if (id >= *spec_.folded_vocab) id = static_cast<int32_t>(3 + id % (*spec_.folded_vocab - 3));
  p.inputs.prompt = std::move(tokens.ids);
  if (!model_.config.pi05()) {
    std::vector<float> padded(static_cast<size_t>(model_.config.state_dim), 0.f);
    std::ranges::transform(state, padded.begin(), [](double v) { return static_cast<float>(v); });
    p.inputs.state = ops_.upload(padded, {1, model_.config.state_dim});
  }
  return p;
}

std::vector<float> Policy::noise(const InferOptions& options) const {
  const int64_t count = model_.config.horizon * model_.config.action_dim;
  if (options.noise.empty()) {
    std::vector<float> drawn(static_cast<size_t>(count));
    normal_noise(options.seed, 0, drawn);
    return drawn;
  }
  ensure(std::ssize(options.noise) == count, Fault::input,
         "the noise has {} values, expected {} ({} rows of {})", options.noise.size(), count,
         model_.config.horizon, model_.config.action_dim);
  for (const float v : options.noise)
    ensure(std::isfinite(v), Fault::input, "the noise contains {}, expected finite numbers", v);
  return options.noise;
}

std::optional<Policy::Leftover> Policy::leftover(const InferOptions& options,
                                                 const Prepared& p) const {
  if (!options.previous) return {};
  const PreviousChunk& previous = *options.previous;
  const Config& c = model_.config;
  const bool in_units = !previous.actions.empty();
  ensure(in_units != !previous.normalized.empty(), Fault::input,
         "the previous chunk has {} normalized values and {} in the robot's units; give one of "
         "them",
         previous.normalized.size(), previous.actions.size());
  const int64_t dim_max = in_units ? spec_.action_dim : c.action_dim;
  const size_t values = in_units ? previous.actions.size() : previous.normalized.size();
  ensure(previous.rows >= 1 && previous.rows <= c.horizon && previous.dim >= 1 &&
             previous.dim <= dim_max && std::cmp_equal(values, previous.rows * previous.dim),
         Fault::input, "the previous chunk is [{}, {}] with {} values; at most [{}, {}] fit",
         previous.rows, previous.dim, values, c.horizon, dim_max);
  ensure(!in_units || previous.dim == dim_max, Fault::input,
         "the rows of the previous chunk have {} actions, this robot has {}", previous.dim,
         dim_max);
  ensure(std::isfinite(previous.max_weight) && previous.max_weight >= 0, Fault::input,
         "guidance with a largest weight of {}, expected a finite number from 0 on",
         previous.max_weight);
  const auto refuse = [&](size_t i, double v) {
    fail(Fault::input, "action {} of row {} of the previous chunk is {}, expected a finite number",
         static_cast<int64_t>(i) % previous.dim, static_cast<int64_t>(i) / previous.dim, v);
  };
  for (size_t i = 0; i < previous.actions.size(); ++i)
    if (!std::isfinite(previous.actions[i])) refuse(i, previous.actions[i]);
  const std::vector<float> given =
      in_units ? from_robot(previous.actions, p.states) : previous.normalized;
  for (size_t i = 0; i < given.size(); ++i)
    if (!std::isfinite(given[i])) refuse(i, in_units ? previous.actions[i] : double{given[i]});

  Leftover left{.target = std::vector<float>(static_cast<size_t>(c.horizon * c.action_dim)),
                .max_weight = previous.max_weight};
  for (const float w : guidance_weights(previous.schedule, previous.delay,
                                        previous.execution_horizon, previous.rows, c.horizon))
    left.weights.insert(left.weights.end(), static_cast<size_t>(c.action_dim), w);
  for (int64_t r = 0; r < previous.rows; ++r)
    std::copy_n(given.begin() + r * previous.dim, previous.dim,
                left.target.begin() + r * c.action_dim);
  return left;
}

// The robot's dims only: what the model adds to fill its width means nothing.
std::vector<double> Policy::to_robot(std::span<const float> normalized, const Prepared& p) const {
  const auto wide = static_cast<size_t>(model_.config.action_dim);
  const auto dim = static_cast<size_t>(spec_.action_dim);
  std::vector<double> actions(normalized.size() / wide * dim);
  for (std::span<double> rest = actions; !rest.empty(); rest = rest.subspan(dim)) {
    std::copy_n(normalized.begin(), dim, rest.begin());
    actions_to_robot(spec_.transforms, p.states, rest.first(dim));
    normalized = normalized.subspan(wide);
  }
  return actions;
}

// The inverse of to_robot at the state of this observation; rows of the robot's dims both.
std::vector<float> Policy::from_robot(std::span<const double> actions, const States& states) const {
  std::vector<double> rows(actions.begin(), actions.end());
  const auto dim = static_cast<size_t>(spec_.action_dim);
  for (size_t i = 0; i < rows.size(); i += dim)
    actions_to_model(spec_.transforms, states, std::span(rows).subspan(i, dim));
  std::vector<float> out(rows.size());
  std::ranges::transform(rows, out.begin(), [](double v) { return static_cast<float>(v); });
  return out;
}

std::vector<double> Policy::postprocess(std::span<const float> normalized,
                                        const Prepared& p) const {
  std::vector<double> real = to_robot(normalized, p);
  for (size_t i = 0; i < real.size(); ++i)
    ensure(std::isfinite(real[i]), Fault::internal,
           "action {} of row {} is {}; refusing to return it. Are weights and statistics sound?",
           static_cast<int64_t>(i) % spec_.action_dim, static_cast<int64_t>(i) / spec_.action_dim,
           real[i]);
  return real;
}

// Two more rows through to_robot: relative actions become absolute, ALOHA's joints flip.
void Policy::add_quantiles(const Prepared& p, Actions& out) const {
  const Normalizer& state = spec_.normalize().state;
  const std::vector<double>& before = p.states[p.states.size() - 2];  // as they are normalised
  if (state.has_quantiles(std::ssize(before)))
    for (size_t i = 0; i < before.size(); ++i) {
      // lerobot's statistics are floats: a state equal to its quantile is not outside.
      const auto seen = [&](double v) {
        return state.family == Family::openpi ? v : static_cast<float>(v);
      };
      const double v = seen(before[i]);
      out.state_outside.push_back(v < seen(state.q01[i]) || v > seen(state.q99[i]));
    }
  if (quantiles_.empty()) return;
  const std::vector<double> pair = to_robot(quantiles_, p);
  if (!std::ranges::all_of(pair, [](double v) { return std::isfinite(v); })) return;
  for (size_t d = 0; d < static_cast<size_t>(out.dim); ++d) {
    const auto [low, high] = std::minmax(pair[d], pair[d + static_cast<size_t>(out.dim)]);
    out.low.push_back(low);
    out.high.push_back(high);
  }
}

// Vision and prefill, like denoising, are bodies that a backend may record and replay; their sizes
// are those of one observation and one chunk, so a batch runs plainly.
void Policy::read_prefix(Call& call, const Stage& stage) {
  std::vector<KvCache*> caches;
  for (size_t i = 0; i < call.inputs.size(); ++i) caches.push_back(&cache_of(call, i));
  StageTimes& times = call.out.times;
  StageWork& work = call.out.work;
  tendon::read_prefix(
      ops_, model_, call.inputs, Sequences(caches), [&](auto* name, auto given, auto& body) {
        std::vector<Tensor> made =
            call.recorded ? ops_.graph({name, call.sizes}, given, body) : body(given);
        if (std::string_view(name) == "vision")
          stage(times.vision_ms, work.vision_flops, work.vision_bytes);
        else
          stage(times.prefill_ms, work.prefill_flops, work.prefill_bytes);
        return made;
      });
  for (const KvCache* cache : caches) work.prefix_tokens += cache->prefix;
}

std::vector<float> Policy::velocity(const Observation& observation, std::span<const float> noisy,
                                    double t) {
  const Point point{{noisy.begin(), noisy.end()}, t};
  return std::move(velocities(observation, std::span(&point, 1))[0]);
}

std::vector<std::vector<float>> Policy::velocities(const Observation& observation,
                                                   std::span<const Point> points) {
  const Config& c = model_.config;
  std::vector<float> times;
  for (const auto& [noisy, t] : points) {
    ensure(std::ssize(noisy) == c.horizon * c.action_dim, Fault::input,
           "the noisy actions have {} values, expected {} ({} rows of {})", noisy.size(),
           c.horizon * c.action_dim, c.horizon, c.action_dim);
    for (const float v : noisy)
      ensure(std::isfinite(v), Fault::input,
             "the noisy actions contain {}, expected finite numbers", v);
    ensure(t >= 0 && t <= 1, Fault::input, "t is {}, expected 0 (actions) to 1 (noise)", t);
    times.push_back(static_cast<float>(t));
  }
  Call call;
  add(observation, call);
  const Inputs& in = call.inputs[0];
  call.sizes = {in.images, std::ssize(in.prompt)};
  read_prefix(call, [](auto&...) {});
  std::vector<std::vector<float>> all;
  const std::vector<StepTables> steps = step_tables(ops_, model_, times, TimeSequence::lerobot);
  for (size_t i = 0; i < points.size(); ++i) {
    const Tensor x = ops_.upload(points[i].noisy, {c.horizon, c.action_dim});
    all.push_back(ops_.download(tendon::velocity(ops_, model_, cache_, steps[i], x)));
  }
  return all;
}

std::vector<float> Policy::to_model(const Observation& observation,
                                    std::span<const double> actions) const {
  const Config& c = model_.config;
  const int64_t rows = std::min(std::ssize(actions) / spec_.action_dim, c.horizon);
  ensure(rows > 0 && std::ssize(actions) % spec_.action_dim == 0, Fault::input,
         "a chunk of {} values, expected rows of {}", actions.size(), spec_.action_dim);
  for (const double v : actions)
    ensure(std::isfinite(v), Fault::input, "the chunk contains {}, expected finite numbers", v);
  const States states = state_to_model(spec_.transforms, robot_state(observation));
  const std::vector<float> given =
      from_robot(actions.first(static_cast<size_t>(rows * spec_.action_dim)), states);
  std::vector<float> all(static_cast<size_t>(c.horizon * c.action_dim));
  for (int64_t r = 0; r < c.horizon; ++r)
    std::copy_n(given.begin() + std::min(r, rows - 1) * spec_.action_dim, spec_.action_dim,
                all.begin() + r * c.action_dim);
  return all;
}

void Policy::add(const Observation& observation, Call& call) {
  StopWatch watch;
  Prepared p = preprocess(observation);
  call.out.times.pictures_ms += p.pictures_ms;
  call.out.times.prompt_ms += watch.lap_ms() - p.pictures_ms;
  call.inputs.push_back(std::move(p.inputs));
  call.observations.push_back(std::move(p));
  if (call.inputs.size() > 1) call.others.push_back(make_cache(ops_, model_.config));
}

Policy::Call Policy::prepare(std::span<const BatchRow> rows) {
  ensure(!rows.empty() && rows.size() <= 64, Fault::input, "a batch of {} rows, expected 1 to 64",
         rows.size());
  Call call;
  call.recorded = rows.size() == 1;
  if (!call.recorded) ops_.forget_graphs();
  std::map<const Observation*, size_t> known;
  for (const BatchRow& row : rows) try {
      ensure(row.observation != nullptr, Fault::input, "no observation");
      const auto [place, is_new] = known.try_emplace(row.observation, known.size());
      if (is_new) add(*row.observation, call);
      const Prepared& p = call.observations[place->second];
      StopWatch watch;
      const Schedule& steps = schedule(row.options);
      call.out.times.tables_ms += watch.lap_ms();
      call.draws.push_back({place->second, &steps, noise(row.options), leftover(row.options, p)});
      call.out.times.noise_ms += watch.lap_ms();
    } catch (const Error& e) {
      if (rows.size() == 1) throw;
      fail(e.fault(), "row {}: {}", call.draws.size(), e.what());
    }
  const Inputs& in = call.inputs[0];
  call.sizes = {in.images, std::ssize(in.prompt), std::ssize(call.draws[0].steps->steps),
                static_cast<int64_t>(rows[0].options.sequence.value_or(spec_.sequence))};
  return call;
}

// Rows of one schedule and one form of guidance: normalised actions, row by row.
std::vector<float> Policy::denoise_together(Call& call, std::span<const size_t> rows) {
  const Draw& first = call.draws[rows[0]];
  std::vector<KvCache*> caches;
  std::vector<float> drawn, target, weights;
  for (const size_t r : rows) {
    const Draw& draw = call.draws[r];
    caches.push_back(&cache_of(call, draw.observation));
    drawn.insert(drawn.end(), draw.noise.begin(), draw.noise.end());
    if (!draw.left) continue;
    target.insert(target.end(), draw.left->target.begin(), draw.left->target.end());
    weights.insert(weights.end(), draw.left->weights.begin(), draw.left->weights.end());
  }
  // Uploaded only now: a replay may use the memory of whatever came after it was recorded.
  const Shape chunks{std::ssize(rows) * model_.config.horizon, model_.config.action_dim};
  std::optional<Guidance> guided;
  if (first.left)
    guided = {ops_.upload(target, chunks), ops_.upload(weights, chunks), first.left->max_weight};
  const Tensor start = ops_.upload(drawn, chunks);
  const auto denoised = [&](auto inputs) {
    return std::vector<Tensor>{
        denoise(ops_, model_, Sequences(caches), *first.steps, {inputs[0], guided})};
  };
  const bool recorded = call.recorded && !guided;
  const std::span<const Tensor> inputs(&start, 1);
  return ops_.download(
      (recorded ? ops_.graph({"denoise", call.sizes}, inputs, denoised) : denoised(inputs))[0]);
}

Actions Policy::infer(const Observation& observation, const InferOptions& options) {
  const BatchRow row{&observation, options};
  return std::move(infer_batch(std::span(&row, 1))[0]);
}

std::vector<Actions> Policy::infer_batch(std::span<const BatchRow> rows) {
  const Ops::Polled polled(ops_, rows.empty() ? nullptr : rows[0].options.poll);
  StopWatch total, watch;
  Call call = prepare(rows);
  StageTimes& times = call.out.times;
  StageWork& work = call.out.work;
  WorkMeter meter(ops_.coverage());
  times.preprocess_ms = watch.lap_ms();

  const Stage stage = [&](double& ms, int64_t& flops, int64_t& bytes) {
    ops_.synchronize();
    ms = watch.lap_ms();
    meter.lap(flops, bytes);
  };
  read_prefix(call, stage);

  std::vector<Actions> out(rows.size(), {.horizon = model_.config.horizon,
                                         .dim = spec_.action_dim,
                                         .model_dim = model_.config.action_dim});
  std::map<std::tuple<const Schedule*, bool, float>, std::vector<size_t>> groups;
  for (size_t r = 0; r < rows.size(); ++r) {
    const Draw& draw = call.draws[r];
    groups[{draw.steps, draw.left.has_value(), draw.left ? draw.left->max_weight : 0}].push_back(r);
    work.skipped_flops += dense_flops(model_.config, std::ssize(draw.steps->steps));
  }
  for (const auto& [key, members] : groups) {
    const std::vector<float> all = denoise_together(call, members);
    std::span<const float> chunks = all;
    const size_t values = all.size() / members.size();
    for (const size_t r : members) {
      out[r].normalized.assign(chunks.begin(), chunks.begin() + static_cast<int64_t>(values));
      chunks = chunks.subspan(values);
    }
  }
  stage(times.denoise_ms, work.denoise_flops, work.denoise_bytes);
  work.skipped_flops -= work.vision_flops + work.prefill_flops + work.denoise_flops;

  for (size_t r = 0; r < rows.size(); ++r) {
    const Prepared& p = call.observations[call.draws[r].observation];
    out[r].values = postprocess(out[r].normalized, p);
    add_quantiles(p, out[r]);
    out[r].warnings = p.warnings;
  }
  times.postprocess_ms = watch.lap_ms();
  times.total_ms = total.lap_ms();
  for (Actions& row : out) row.times = times, row.work = work;
  return out;
}

}  // namespace tendon
