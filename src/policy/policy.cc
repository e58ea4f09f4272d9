#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "policy/processors.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "tensor/random.h"
#include "tensor/stop_watch.h"

namespace tendon {

// Time and work of one stage after the other.
class Policy::Meter {
 public:
  Meter(Ops& ops, StopWatch& watch) : ops_(ops), watch_(watch), before_(ops.coverage().total) {}
  // What was asked of the backend since the last lap; it is waited for.
  void lap(double& ms, int64_t& flops, int64_t& bytes) {
    ops_.synchronize();
    ms = watch_.lap_ms();
    const OpCount now = ops_.coverage().total;
    flops = now.flops - before_.flops;
    bytes = now.bytes + now.weight_bytes - before_.bytes - before_.weight_bytes;
    before_ = now;
  }

 private:
  Ops& ops_;
  StopWatch& watch_;
  OpCount before_;
};

Policy::Policy(Ops& ops, Model model, PolicySpec spec)
    : ops_(ops),
      model_(std::move(model)),
      spec_(std::move(spec)),
      patches_(spec_.resizer, {static_cast<int>(model_.config.vision.image),
                               static_cast<int>(model_.config.vision.patch), ops.takes_pictures(),
                               spec_.dark_bars ? -3.f : -1.f}) {
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
    quantiles_.insert(quantiles_.end(), row.begin(), row.end());
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

std::span<const double> Policy::robot_state(const Observation& observation) const {
  const std::vector<double>& state = observation.state;
  ensure(std::ssize(state) >= spec_.narrowest_state() && std::ssize(state) <= spec_.state_dim,
         Fault::input, "the state has {} values, this model expects {}", state.size(),
         state_dims(spec_.state_dim, spec_.state_dim_min));
  for (size_t i = 0; i < state.size(); ++i)
    ensure(std::isfinite(state[i]), Fault::input, "state[{}] is {}, expected a finite number", i,
           state[i]);
  return state;
}

// Present cameras in the model's order, as one stack of patches; absent ones are left out.
void Policy::add_images(const Observation& observation, Prepared& p, Inputs& in) {
  const auto place = [&](std::string_view slot) {
    return static_cast<size_t>(std::ranges::find(spec_.slots, slot) - spec_.slots.begin());
  };
  std::vector<std::string> extra;
  p.pictures.assign(spec_.slots.size(), nullptr);
  for (const auto& given : observation.images) {
    const std::string_view own = without_prefix(given.first);
    const auto known = std::ranges::find_if(
        spec_.cameras, [&](const auto& camera) { return camera.first == own; });
    const std::string_view slot = known == spec_.cameras.end() ? own : known->second;
    if (slot.empty()) continue;  // known to the robot, not used by the model
    if (place(slot) == spec_.slots.size()) {
      extra.push_back(given.first);
      continue;
    }
    ensure(!p.pictures[place(slot)], Fault::input, "two images for camera '{}'", slot);
    p.pictures[place(slot)] = &given;
  }
  in.images = std::ssize(p.pictures) - std::ranges::count(p.pictures, nullptr);
  if (!extra.empty()) {  // a wrong name, unless the model sees all that it can see
    const std::vector<std::string> expected = robot_cameras(spec_);
    ensure(in.images >= std::ssize(expected), Fault::input,
           "no camera is called '{}'; this model expects {}; nearest: '{}'", extra[0],
           quoted_names(expected), nearest(camera_name(extra[0]), expected));
    p.warnings.push_back(
        fmt::format("not used, the model has no such cameras: {}", quoted_names(extra)));
  }
  if (in.images == 0)
    fail(Fault::input, "no image given; this model expects {}", quoted_names(robot_cameras(spec_)));
  for (const std::string& camera : spec_.required)
    ensure(p.pictures[place(spec_.cameras.at(camera))], Fault::input,
           "the image of camera '{}' is missing; this robot needs it", camera);
  const size_t values = patches_.layout().values();
  values_.resize(static_cast<size_t>(in.images) * values);
  std::span<float> rest = values_;
  bool of_bytes = true;
  for (size_t i = 0; i < p.pictures.size(); ++i) {
    if (!p.pictures[i]) {
      p.warnings.push_back(fmt::format("camera '{}' is absent and masked", spec_.slots[i]));
      continue;
    }
    const auto& [key, image] = *p.pictures[i];
    patches_.write(image, key, rest.first(values));
    rest = rest.subspan(values);
    of_bytes &= patches_.keeps_bytes(image);
  }
  const VisionConfig& vision = model_.config.vision;
  const Pictures pictures{values_, in.images, vision.image, vision.patch, of_bytes};
  in.patches =
      ops_.takes_pictures() ? ops_.patches(pictures) : ops_.upload(values_, pictures.patches());
}

void Policy::preprocess(const Observation& observation, Prepared& p, Inputs& in) {
  p.observation = &observation;
  p.warnings.clear();
  p.states = state_to_model(spec_.transforms, robot_state(observation), std::move(p.states));
  const std::vector<double>& state = p.states.back();
  StopWatch watch;
  add_images(observation, p, in);
  p.pictures_ms = watch.lap_ms();
  const std::optional<std::string>& text =
      observation.prompt ? observation.prompt : spec_.default_prompt;
  ensure(text.has_value(), Fault::input, "a prompt is required: give --prompt TEXT");
  ensure(!strip(*text).empty(), Fault::input,
         "the prompt is empty; say what the robot shall do, such as \"fold the towel\"");
  p.tokens = tokenize_prompt(*spec_.tokenizer, *text, state, spec_.prompt, std::move(p.tokens));
  in.prompt = p.tokens.ids;
  if (p.tokens.untruncated > std::ssize(in.prompt)) {
    p.warnings.push_back(fmt::format("the prompt has {} tokens and was cut to {}",
                                     p.tokens.untruncated, in.prompt.size()));
    p.tokens = {};  // megabytes of a prompt would stay
  }
  if (spec_.folded_vocab)
    for (int32_t& id : in.prompt)
      if (id >= *spec_.folded_vocab) id = static_cast<int32_t>(3 + id % (*spec_.folded_vocab - 3));
  if (!model_.config.pi05()) {
    values_.assign(static_cast<size_t>(model_.config.state_dim), 0.f);
    std::ranges::copy(state, values_.begin());
    in.state = ops_.upload(values_, {1, model_.config.state_dim});
  }
}

void Policy::draw_noise(const InferOptions& options, std::span<float> to) const {
  if (options.noise.empty()) return normal_noise(options.seed, 0, to);
  ensure(options.noise.size() == to.size(), Fault::input,
         "the noise has {} values, expected {} ({} rows of {})", options.noise.size(), to.size(),
         model_.config.horizon, model_.config.action_dim);
  for (const float v : options.noise)
    ensure(std::isfinite(v), Fault::input, "the noise contains {}, expected finite numbers", v);
  std::ranges::copy(options.noise, to.begin());
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
void Policy::to_robot(std::span<const float> normalized, const Prepared& p,
                      std::span<double> to) const {
  const auto wide = static_cast<size_t>(model_.config.action_dim);
  const auto dim = static_cast<size_t>(spec_.action_dim);
  const size_t rows = to.size() / dim;
  for (size_t r = 0; r < rows; ++r)
    std::ranges::copy(normalized.subspan(r * wide, dim), to.subspan(r * dim).begin());
  actions_to_robot(spec_.transforms, p.states, to, rows);
}

// The inverse of to_robot at the state of this observation; rows of the robot's dims both.
std::vector<float> Policy::from_robot(std::span<const double> actions, const States& states) const {
  std::vector<double> rows(actions.begin(), actions.end());
  actions_to_model(spec_.transforms, states, rows,
                   rows.size() / static_cast<size_t>(spec_.action_dim));
  return {rows.begin(), rows.end()};
}

void Policy::postprocess(const Prepared& p, Actions& out) const {
  out.horizon = model_.config.horizon;
  out.dim = spec_.action_dim;
  out.model_dim = model_.config.action_dim;
  out.values.resize(static_cast<size_t>(out.horizon * out.dim));
  to_robot(out.normalized, p, out.values);
  for (size_t i = 0; i < out.values.size(); ++i)
    ensure(std::isfinite(out.values[i]), Fault::internal,
           "action {} of row {} is {}; refusing to return it. Are weights and statistics sound?",
           static_cast<int64_t>(i) % out.dim, static_cast<int64_t>(i) / out.dim, out.values[i]);
  out.warnings = p.warnings;
  add_quantiles(p, out);
}

// Two more rows through to_robot: relative actions become absolute, ALOHA's joints flip.
void Policy::add_quantiles(const Prepared& p, Actions& out) const {
  const Normalizer& state = spec_.normalize().state;
  const std::vector<double>& before = p.states[p.states.size() - 2];  // as they are normalised
  if (state.has_quantiles(std::ssize(before))) {
    out.state_outside.resize(before.size());
    for (size_t i = 0; i < before.size(); ++i) {
      // lerobot's statistics are floats: a state equal to its quantile is not outside.
      const auto seen = [&](double v) {
        return state.family == Family::openpi ? v : static_cast<float>(v);
      };
      const double v = seen(before[i]);
      out.state_outside[i] = v < seen(state.q01[i]) || v > seen(state.q99[i]);
    }
  }
  if (quantiles_.empty()) return;
  const auto dim = static_cast<size_t>(out.dim);
  out.low.resize(2 * dim);
  to_robot(quantiles_, p, out.low);
  if (!std::ranges::all_of(out.low, [](double v) { return std::isfinite(v); }))
    return out.low.clear();
  out.high.assign(out.low.begin() + out.dim, out.low.end());
  out.low.resize(dim);
  for (size_t d = 0; d < dim; ++d)
    if (out.low[d] > out.high[d]) std::swap(out.low[d], out.high[d]);
}

// Vision and prefill, like denoising, are bodies that a backend may record and replay; their sizes
// are those of one observation and one chunk, so a batch runs plainly.
void Policy::read_prefix(Call& call, Meter& meter) {
  call.caches.clear();
  for (size_t i = 0; i < call.inputs.size(); ++i) call.caches.push_back(&cache_of(call, i));
  StageTimes& times = call.times;
  StageWork& work = call.work;
  const auto run = [&](const char* name, auto given, const Kernels::Body& body) {
    std::vector<Tensor> made =
        call.recorded ? ops_.graph({name, call.sizes}, given, body) : body(given);
    if (std::string_view(name) == "vision")
      meter.lap(times.vision_ms, work.vision_flops, work.vision_bytes);
    else
      meter.lap(times.prefill_ms, work.prefill_flops, work.prefill_bytes);
    return made;
  };
  tendon::read_prefix(ops_, model_, call.inputs, Sequences(call.caches), std::ref(run));
  for (const KvCache* cache : call.caches) work.prefix_tokens += cache->prefix;
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
  preprocess(observation, call.observations.emplace_back(), call.inputs.emplace_back());
  const Inputs& in = call.inputs[0];
  call.sizes = {in.images, std::ssize(in.prompt)};
  StopWatch watch;
  Meter meter(ops_, watch);
  read_prefix(call, meter);
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

void Policy::add(const Observation& observation, size_t place, Call& call) {
  StopWatch watch;
  Prepared& p = call.observations[place];
  preprocess(observation, p, call.inputs[place]);
  call.times.pictures_ms += p.pictures_ms;
  call.times.prompt_ms += watch.lap_ms() - p.pictures_ms;
  if (place > 0) call.others.push_back(make_cache(ops_, model_.config));
}

Policy::Call Policy::prepare(std::span<const BatchRow> rows) {
  ensure(!rows.empty() && rows.size() <= 64, Fault::input, "a batch of {} rows, expected 1 to 64",
         rows.size());
  Call call = std::exchange(spare_, {});
  call.recorded = rows.size() == 1;
  if (!call.recorded) ops_.forget_graphs();
  call.observations.resize(rows.size());
  call.inputs.resize(rows.size());
  call.draws.resize(rows.size());
  size_t known = 0;  // observations
  for (size_t r = 0; r < rows.size(); ++r) try {
      const InferOptions& options = rows[r].options;
      ensure(rows[r].observation != nullptr, Fault::input, "no observation");
      const auto seen = std::span(call.observations).first(known);
      const auto found = std::ranges::find(seen, rows[r].observation, &Prepared::observation);
      Draw& draw = call.draws[r];
      draw.row = r;
      draw.observation = static_cast<size_t>(found - seen.begin());
      if (found == seen.end()) add(*rows[r].observation, known++, call);
      StopWatch watch;
      draw.steps = &schedule(options);
      call.times.tables_ms += watch.lap_ms();
      draw.noise.resize(static_cast<size_t>(model_.config.horizon * model_.config.action_dim));
      draw_noise(options, draw.noise);
      draw.left = leftover(options, call.observations[draw.observation]);
      call.times.noise_ms += watch.lap_ms();
    } catch (const Error& e) {
      if (rows.size() == 1) throw;
      fail(e.fault(), "row {}: {}", r, e.what());
    }
  call.observations.resize(known);
  call.inputs.resize(known);
  const Inputs& in = call.inputs[0];
  call.sizes = {in.images, std::ssize(in.prompt), std::ssize(call.draws[0].steps->steps),
                static_cast<int64_t>(rows[0].options.sequence.value_or(spec_.sequence))};
  return call;
}

// Draws of one kind: their normalised actions.
void Policy::denoise_together(Call& call, std::span<const Draw> draws, std::span<Actions> out) {
  const Draw& first = draws[0];
  std::vector<float> target, weights;
  call.caches.clear();
  values_.clear();
  for (const Draw& draw : draws) {
    call.caches.push_back(&cache_of(call, draw.observation));
    values_.insert(values_.end(), draw.noise.begin(), draw.noise.end());
    if (!draw.left) continue;
    target.insert(target.end(), draw.left->target.begin(), draw.left->target.end());
    weights.insert(weights.end(), draw.left->weights.begin(), draw.left->weights.end());
  }
  // Uploaded only now: a replay may use the memory of whatever came after it was recorded.
  const Shape chunks{std::ssize(draws) * model_.config.horizon, model_.config.action_dim};
  std::optional<Guidance> guided;
  if (first.left)
    guided = {ops_.upload(target, chunks), ops_.upload(weights, chunks), first.left->max_weight};
  const Tensor start = ops_.upload(values_, chunks);
  const auto denoised = [&](auto inputs) {
    return std::vector<Tensor>{
        denoise(ops_, model_, Sequences(call.caches), *first.steps, {inputs[0], guided})};
  };
  const bool recorded = call.recorded && !guided;
  const std::span<const Tensor> inputs(&start, 1);
  const std::vector<Tensor> made =
      recorded ? ops_.graph({"denoise", call.sizes}, inputs, std::ref(denoised)) : denoised(inputs);
  ops_.download(made[0], values_);
  for (auto chunk = values_.begin(); const Draw& draw : draws) {
    const auto end = chunk + std::ssize(draw.noise);
    out[draw.row].normalized.assign(chunk, end);
    chunk = end;
  }
}

Actions Policy::infer(const Observation& observation, const InferOptions& options) {
  const BatchRow row{&observation, options};
  Actions out;
  answer({&row, 1}, {&out, 1});
  return out;
}

std::vector<Actions> Policy::infer_batch(std::span<const BatchRow> rows) {
  std::vector<Actions> out(rows.size());
  answer(rows, out);
  return out;
}

void Policy::answer(std::span<const BatchRow> rows, std::span<Actions> out) {
  const Ops::Polled polled(ops_, rows.empty() ? nullptr : rows[0].options.poll);
  StopWatch total, watch;
  Call call = prepare(rows);
  StageTimes& times = call.times;
  StageWork& work = call.work;
  times.preprocess_ms = watch.lap_ms();
  Meter meter(ops_, watch);
  read_prefix(call, meter);

  std::ranges::sort(call.draws, {}, [](const Draw& d) { return std::pair(d.kind(), d.row); });
  for (std::span<const Draw> rest = call.draws; !rest.empty();) {
    const auto other =
        std::ranges::find_if(rest, [&](const Draw& d) { return d.kind() != rest[0].kind(); });
    const auto together = rest.first(static_cast<size_t>(other - rest.begin()));
    denoise_together(call, together, out);
    rest = rest.subspan(together.size());
  }
  meter.lap(times.denoise_ms, work.denoise_flops, work.denoise_bytes);
  for (const Draw& draw : call.draws)
    work.skipped_flops += dense_flops(model_.config, std::ssize(draw.steps->steps));
  work.skipped_flops -= work.vision_flops + work.prefill_flops + work.denoise_flops;

  for (const Draw& draw : call.draws)
    postprocess(call.observations[draw.observation], out[draw.row]);
  times.postprocess_ms = watch.lap_ms();
  times.total_ms = total.lap_ms();
  for (Actions& row : out) row.times = times, row.work = work;

  // The host's memory serves the next call, the backend's goes back.
  for (Inputs& in : call.inputs) in.patches = in.state = {};
  call.others.clear();
  call.times = {};
  call.work = {};
  spare_ = std::move(call);
}

}  // namespace tendon
