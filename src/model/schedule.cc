// What depends on the denoising time alone: time embedding, pi0's time half of the action-time MLP,
// pi0.5's condition and modulations. Computed once per step count. And the weights of guidance.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/pi0.h"
#include "tensor/check.h"

namespace tendon {
namespace {

// Sines, then cosines, of t · 2π / period_i; period_i runs from min to max geometrically.
template <class Float>
void embed_time(Float t, const Config& config, std::span<float> to) {
  const size_t half = to.size() / 2;
  const Float low = static_cast<Float>(config.min_period);
  const Float ratio = static_cast<Float>(config.max_period) / low;
  for (size_t i = 0; i < half; ++i) {
    const Float fraction =
        half > 1 ? static_cast<Float>(i) / static_cast<Float>(half - 1) : Float{0};
    const Float period = low * std::pow(ratio, fraction);
    const Float angle = t * (Float{2} * std::numbers::pi_v<Float> / period);
    to[i] = static_cast<float>(std::sin(angle));
    to[half + i] = static_cast<float>(std::cos(angle));
  }
}

std::vector<float> times(int64_t steps, TimeSequence sequence) {
  std::vector<float> t;
  float accumulated = 1.f;
  for (int64_t k = 0; k < steps; ++k) {
    const double exact = 1.0 + static_cast<double>(k) * (-1.0 / static_cast<double>(steps));
    t.push_back(sequence == TimeSequence::lerobot ? static_cast<float>(exact) : accumulated);
    accumulated += static_cast<float>(-1.0 / static_cast<double>(steps));
  }
  return t;
}

// Scale, shift and gate of one norm for all steps: condition [steps, width] -> one row per step.
std::vector<Modulation> modulations(Ops& ops, const GemmaNorm& norm, const Tensor& condition,
                                    int64_t steps) {
  if (!norm.ada_scale) return std::vector<Modulation>(static_cast<size_t>(steps), {norm.scale});
  const Tensor scale = ops.linear(condition, norm.ada_scale);
  const Tensor shift = ops.linear(condition, norm.ada_shift);
  const Tensor gate = ops.linear(condition, norm.ada_gate);
  std::vector<Modulation> rows;
  for (int64_t k = 0; k < steps; ++k)
    rows.push_back({ops.slice_rows(scale, k, k + 1), ops.slice_rows(shift, k, k + 1),
                    ops.slice_rows(gate, k, k + 1)});
  return rows;
}

}  // namespace

Schedule make_schedule(Ops& ops, const Model& m, int64_t steps, TimeSequence sequence) {
  const Ops::Scope scope(ops, Module::common);
  ensure(steps >= 1 && steps <= 1000, Fault::input, "{} denoising steps; 1 to 1000 make sense",
         steps);
  const int64_t width = m.config.expert.width;
  const std::vector<float> t = times(steps, sequence);
  std::vector<float> embeddings(static_cast<size_t>(steps * width));
  for (size_t k = 0; k < t.size(); ++k) {
    const auto row =
        std::span(embeddings).subspan(k * static_cast<size_t>(width), static_cast<size_t>(width));
    if (sequence == TimeSequence::lerobot) embed_time<double>(t[k], m.config, row);
    if (sequence == TimeSequence::openpi) embed_time<float>(t[k], m.config, row);
  }
  const Tensor embedding = ops.upload(embeddings, {steps, width});
  Tensor mix, condition;
  if (m.config.pi05()) {
    const Epilogue silu{.activation = Activation::silu};
    condition =
        ops.linear(ops.linear(embedding, m.weights.time_in, silu), m.weights.time_out, silu);
  } else {
    mix = ops.linear(embedding, m.weights.mix_time);
  }

  Schedule schedule{.dt = static_cast<float>(-1.0 / static_cast<double>(steps))};
  for (int64_t k = 0; k < steps; ++k) {
    StepTables step{.time = t[static_cast<size_t>(k)],
                    .time_embedding = ops.slice_rows(embedding, k, k + 1)};
    if (mix) step.mix = ops.slice_rows(mix, k, k + 1);
    if (condition) step.condition = ops.slice_rows(condition, k, k + 1);
    schedule.steps.push_back(std::move(step));
  }
  const auto spread = [&](const GemmaNorm& norm, const auto& place) {
    const std::vector<Modulation> rows = modulations(ops, norm, condition, steps);
    for (size_t k = 0; k < rows.size(); ++k) place(schedule.steps[k], rows[k]);
  };
  for (const GemmaBlock& block : m.weights.expert.blocks) {
    spread(block.norm1, [](StepTables& s, const Modulation& row) { s.attention.push_back(row); });
    spread(block.norm2, [](StepTables& s, const Modulation& row) { s.mlp.push_back(row); });
  }
  spread(m.weights.expert.norm, [](StepTables& s, const Modulation& row) { s.final = row; });
  return schedule;
}

std::vector<float> guidance_weights(GuidanceSchedule schedule, int64_t delay,
                                    int64_t execution_horizon, int64_t leftover_rows,
                                    int64_t horizon) {
  ensure(delay >= 0 && execution_horizon >= 0, Fault::input,
         "guidance with a delay of {} and an execution horizon of {} rows", delay,
         execution_horizon);
  const int64_t end = std::min({execution_horizon, leftover_rows, horizon});
  const int64_t start = std::min(delay, end);
  std::vector<float> weights(static_cast<size_t>(horizon), 0.f);
  for (int64_t i = 0; i < end; ++i) {
    float& w = weights[static_cast<size_t>(i)];
    if (i < start || schedule == GuidanceSchedule::ones) {
      w = 1.f;
    } else if (schedule != GuidanceSchedule::zeros) {
      const double linear =
          1.0 - static_cast<double>(i - start + 1) / static_cast<double>(end - start + 1);
      const double bent = linear * std::expm1(linear) / (std::numbers::e - 1.0);
      w = static_cast<float>(schedule == GuidanceSchedule::exp ? bent : linear);
    }
  }
  return weights;
}

float guidance_strength(float time, float max_weight) {
  const double tau = 1.0 - static_cast<double>(time), rest = static_cast<double>(time);
  if (tau <= 0.0) return max_weight;
  const double strength = rest / tau * ((rest * rest + tau * tau) / (rest * rest));
  return static_cast<float>(std::min(strength, static_cast<double>(max_weight)));
}

}  // namespace tendon
